# Copies by rsync and tar have all that the original has, both ways.
mkdir -p /srv/tree/d /srv/tree/e
cd /srv/tree
echo content >f
ln f d/second-name
ln -s f symlink
mkfifo fifo
mknod null c 1 3
truncate -s 1M sparse
echo end >>sparse
chmod 4755 f
chown 1:2 d
setfattr -n user.note -v hello f
setfattr -n user.of-directory -v d d
setfacl -m u:7:rwx,d:g:8:r d
setcap cap_net_raw+ep sparse
touch -d @1234567890.123456789 f d symlink -h
cp -a /usr/share/perl5 e/perl5 2>/dev/null || cp -a /opt/perl5 e/perl5
same() { rsync -aHAXn --delete --itemize-changes "$1/" "$2/" | diff /dev/null -; }
rsync -aHAX --delete /srv/tree/ /srv/copy/
same /srv/tree /srv/copy
rm -rf e/perl5/*[aeiou]*
mv e/perl5 e/moved
echo more >>f
setfattr -x user.note f
rsync -aHAX --delete /srv/tree/ /srv/copy/
same /srv/tree /srv/copy
rsync -aHAX --delete /srv/copy/ /srv/tree/
same /srv/copy /srv/tree
mkdir /srv/tar
tar --acls --xattrs --xattrs-include='*' --sparse -cf - . | tar --acls --xattrs --xattrs-include='*' -xpf - -C /srv/tar
same /srv/tree /srv/tar
getcap /srv/tar/sparse | grep -q cap_net_raw=ep
# Directories of the image, changed in place by a copy from elsewhere.
cp -a /usr/lib/python3.11 /tmp/python
rm -rf /tmp/python/json
echo "# changed" >>/tmp/python/abc.py
rsync -aHAX --delete /tmp/python/ /usr/lib/python3.11/
same /tmp/python /usr/lib/python3.11
[ ! -e /usr/lib/python3.11/json ]
rsync -aHAX --delete /usr/lib/python3.11/ /tmp/back/
same /usr/lib/python3.11 /tmp/back
