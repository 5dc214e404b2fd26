# A parallel build of many files, twice: the second one does nothing.
mkdir -p /srv/build
cd /srv/build
{
	echo 'objects := $(patsubst %.c,%.o,$(wildcard f*.c))'
	echo 'program: main.o lib.a; $(CC) -o $@ main.o lib.a'
	echo 'lib.a: $(objects); ar rcs $@ $(objects)'
	echo '$(objects) main.o: all.h'
} >Makefile
echo 'int main(void) { return' >main.c
for i in $(seq 60); do
	echo "int f$i(int);" >>all.h
	printf '#include <stdio.h>\n#include "all.h"\nint f%d(int x) { return x + %d; }\n' $i $i >f$i.c
	echo "f$i(0) +" >>main.c
done
echo '0 - 1830; }' >>main.c
sed -i '1i #include "all.h"' main.c
make -j4 >/dev/null
./program
make -q program
touch all.h
make -j4 >/dev/null
make -q program
