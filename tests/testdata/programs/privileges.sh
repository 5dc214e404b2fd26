# Capabilities and set-id bits of files count for the programs that have them.
if [ ! -e /usr/local/bin/capable ]; then
	cp /bin/cat /usr/local/bin/capable
	setcap cap_net_bind_service+ep /usr/local/bin/capable
	cp /usr/bin/id /usr/local/bin/set-id
	chmod 6755 /usr/local/bin/set-id
fi
nobody() { setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"; }
getcap /usr/local/bin/capable | grep -q cap_net_bind_service=ep
nobody capable /proc/self/status | grep -q '^CapEff:.*0400$'
nobody set-id | grep -q 'euid=0(root)'
nobody cat /proc/self/status | grep -q '^CapEff:.*0000$'
# A write by another takes them away.
cp -a /usr/local/bin/capable /usr/local/bin/set-id /tmp/
chmod o+w /tmp/capable /tmp/set-id
echo >>/tmp/capable
getcap /tmp/capable | diff /dev/null -
nobody sh -c 'echo >>/tmp/set-id'
stat -c %a /tmp/set-id | grep -qx 757
rm /tmp/capable /tmp/set-id
