# What the other scripts left is whole in the image that was made of it.
dpkg --audit
dpkg -V rsync sqlite3 npm
for db in /root/*.db; do sqlite3 "$db" 'pragma integrity_check' | grep -qx ok; done
git -C /srv/git fsck --full --strict
[ "$(cd /srv/npm/app && node -p "require('p30')")" = 30 ]
rpm -V --nodeps tool
make -q -C /srv/build program
su postgres -s /bin/sh -c "$(echo /usr/lib/postgresql/*/bin)/pg_checksums --check -D /srv/pg/data" | grep -q 'Bad checksums: *0'
