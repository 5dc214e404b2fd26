# What the other scripts run, from Debian; with what apt and dpkg do to get it there.
# shellcheck shell=sh
apt-get -q update
apt-get -q -y --no-install-recommends install acl attr libcap2-bin npm postgresql rpm rsync sqlite3 xz-utils zstd
dpkg --audit
apt-get check
dpkg -V rsync sqlite3 npm
apt-get clean
