# Packages of this machine alone: each depends on the one before.
mkdir -p /srv/npm/packages
cd /srv/npm/packages
for i in $(seq 30); do
	mkdir -p p$i/lib
	before=
	[ $i = 1 ] || before="\"p$((i - 1))\": \"file:/srv/npm/packages/p$((i - 1))-1.0.0.tgz\""
	echo "{\"name\": \"p$i\", \"version\": \"1.0.0\", \"main\": \"lib/index.js\", \"dependencies\": {$before}}" >p$i/package.json
	[ $i = 1 ] && echo 'module.exports = 1' >p1/lib/index.js || echo "module.exports = 1 + require('p$((i - 1))')" >p$i/lib/index.js
	for n in $(seq 40); do echo "// $n" >p$i/lib/$n.js; done
	tar -czf p$i-1.0.0.tgz --transform "s,^p$i,package," p$i
done
mkdir ../app
cd ../app
echo '{"name": "app", "version": "1.0.0", "dependencies": {"p30": "file:/srv/npm/packages/p30-1.0.0.tgz"}}' >package.json
npm install --offline --no-audit --no-fund --loglevel=error
[ "$(node -p "require('p30')")" = 30 ]
npm ls --all --parseable | wc -l | grep -qx 31
rm -rf node_modules
npm ci --offline --no-audit --no-fund --loglevel=error
[ "$(node -p "require('p30')")" = 30 ]
