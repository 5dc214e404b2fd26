# A cluster with checksums, under load, ended by SIGKILL: recovery, and pgbench's own
# invariant.
bin=$(echo /usr/lib/postgresql/*/bin)
install -d -o postgres /srv/pg /srv/socket
as() { setpriv --reuid=postgres --regid=postgres --clear-groups env HOME=/srv/pg "$@"; }
pg() { as "$bin/pg_ctl" -D /srv/pg/data -o "-k /srv/socket -c listen_addresses=''" -l /srv/pg/log -w "$@" >/dev/null; }
as "$bin/initdb" -k -D /srv/pg/data >/dev/null
pg start
as "$bin/createdb" -h /srv/socket bench
as "$bin/pgbench" -h /srv/socket -i -q -s 3 bench 2>/dev/null
as "$bin/pgbench" -h /srv/socket -c 4 -T 4 -n bench >/dev/null 2>&1 &
sleep 3
kill -KILL "$(head -1 /srv/pg/data/postmaster.pid)"
wait || true
sleep 1
pg start
as psql -h /srv/socket -At bench -c 'select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history), (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history), (select count(*) from pgbench_history) > 0' >/root/out
echo 't|t|t' | diff - /root/out
as psql -q -h /srv/socket bench -c 'vacuum full' -c 'reindex database bench'
pg stop
as "$bin/pg_checksums" --check -D /srv/pg/data | grep -q 'Bad checksums: *0'
