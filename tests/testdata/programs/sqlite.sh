# Rollback journal and write-ahead log (whose index is a shared mapping): writers at
# once, one of them killed in the middle, then the database's own checks.
cd /root
for mode in delete wal; do
	db=/root/$mode.db
	sqlite3 "$db" "pragma journal_mode=$mode; create table t(writer int, i int, data blob, primary key(writer, i)); create table c(writer int primary key, n int);"
	writers=
	for w in 1 2 3 4; do
		(
			i=0
			while [ $i -lt 60 ]; do
				echo "begin immediate; insert into t values($w, $i, randomblob(3000)); insert into c values($w, 1) on conflict do update set n = n + 1; commit;"
				i=$((i + 1))
			done
		) | sqlite3 -cmd '.timeout 60000' "$db" &
		writers="$writers $!"
	done
	(while :; do echo "begin immediate; insert into t values(9, abs(random()), randomblob(9000)); insert into c values(9, 1) on conflict do update set n = n + 1; commit;"; done) |
		sqlite3 -cmd '.timeout 60000' "$db" 2>/dev/null &
	victim=$!
	sleep 1
	kill -KILL $victim
	for writer in $writers; do wait "$writer"; done
	wait $victim || true
	sqlite3 -cmd '.timeout 60000' "$db" 'pragma integrity_check; select sum(n = 60) from c where writer < 9; select count(*) from (select writer, count(*) k from t group by writer) join c using (writer) where n <> k' >out
	printf 'ok\n4\n0\n' | diff - out
	sqlite3 -cmd '.timeout 60000' "$db" 'vacuum; pragma integrity_check' | grep -qx ok
done
