# The rpm database is sqlite's, in WAL mode.
mkdir -p /srv/rpm
cd /srv/rpm
cat >tool.spec <<'SPEC'
Name: tool
Version: 1
Release: 1
Summary: A tool
License: none
BuildArch: noarch
%description
A tool.
%install
mkdir -p %{buildroot}/opt/tool/data
for i in $(seq 200); do echo $i >%{buildroot}/opt/tool/data/$i; done
echo '#!/bin/sh' >%{buildroot}/opt/tool/run
%post
echo made >/opt/tool/made
%files
/opt/tool/data
%attr(4750, root, daemon) /opt/tool/run
SPEC
rpmbuild --quiet -bb --define '_topdir /srv/rpm' tool.spec
rpm -i --nodeps RPMS/noarch/tool-1-1.noarch.rpm
rpm -V --nodeps tool
stat -c '%a %G' /opt/tool/run | grep -qx '4750 daemon'
rpm -ql tool | wc -l | grep -qx 202
rpm --rebuilddb
rpm -e --nodeps tool
[ ! -e /opt/tool/run ]
rpm -i --nodeps RPMS/noarch/tool-1-1.noarch.rpm
