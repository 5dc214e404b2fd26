#!/bin/bash
# mkcompiler.sh LAYOUT: tag "compiler" in LAYOUT, made from its tag "minbase": five
# layers and more than 30,000 entries. Each layer is an installation in a chroot,
# packed by stock umoci; the last one deletes, so that there are whiteouts.
set -euo pipefail
. "$(dirname "$0")/common.sh"
[ $# -eq 1 ] || die "want LAYOUT"
has_tag "$1" compiler && exit 0

begin_layers "$1" minbase compiler
step compiler "$install gcc g++ make libc6-dev; $clean"
step tools "$install git python3; $clean"
step headers "$install libboost-dev; $clean"
step slim 'rm -rf /usr/share/doc /usr/share/man; mkdir /usr/share/doc; echo removed >/usr/share/doc/README
	mv /usr/share/perl5 /opt/perl5; ln -s /opt/perl5 /usr/share/perl5
	chown -R 1000:1000 /srv; chmod 2775 /srv; ln /usr/bin/make /usr/local/bin/mk'
finish_layers
