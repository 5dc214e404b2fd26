#include "textflag.h"

// func cpuid(leaf, subleaf uint32) (eax, ebx, ecx, edx uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-24
	MOVL leaf+0(FP), AX
	MOVL subleaf+4(FP), CX
	CPUID
	MOVL AX, eax+8(FP)
	MOVL BX, ebx+12(FP)
	MOVL CX, ecx+16(FP)
	MOVL DX, edx+20(FP)
	RET

// k is the constants of FIPS 180-4, 4.2.2: a word for each of the 64 rounds.
DATA k<>+0x00(SB)/4, $0x428a2f98; DATA k<>+0x04(SB)/4, $0x71374491
DATA k<>+0x08(SB)/4, $0xb5c0fbcf; DATA k<>+0x0c(SB)/4, $0xe9b5dba5
DATA k<>+0x10(SB)/4, $0x3956c25b; DATA k<>+0x14(SB)/4, $0x59f111f1
DATA k<>+0x18(SB)/4, $0x923f82a4; DATA k<>+0x1c(SB)/4, $0xab1c5ed5
DATA k<>+0x20(SB)/4, $0xd807aa98; DATA k<>+0x24(SB)/4, $0x12835b01
DATA k<>+0x28(SB)/4, $0x243185be; DATA k<>+0x2c(SB)/4, $0x550c7dc3
DATA k<>+0x30(SB)/4, $0x72be5d74; DATA k<>+0x34(SB)/4, $0x80deb1fe
DATA k<>+0x38(SB)/4, $0x9bdc06a7; DATA k<>+0x3c(SB)/4, $0xc19bf174
DATA k<>+0x40(SB)/4, $0xe49b69c1; DATA k<>+0x44(SB)/4, $0xefbe4786
DATA k<>+0x48(SB)/4, $0x0fc19dc6; DATA k<>+0x4c(SB)/4, $0x240ca1cc
DATA k<>+0x50(SB)/4, $0x2de92c6f; DATA k<>+0x54(SB)/4, $0x4a7484aa
DATA k<>+0x58(SB)/4, $0x5cb0a9dc; DATA k<>+0x5c(SB)/4, $0x76f988da
DATA k<>+0x60(SB)/4, $0x983e5152; DATA k<>+0x64(SB)/4, $0xa831c66d
DATA k<>+0x68(SB)/4, $0xb00327c8; DATA k<>+0x6c(SB)/4, $0xbf597fc7
DATA k<>+0x70(SB)/4, $0xc6e00bf3; DATA k<>+0x74(SB)/4, $0xd5a79147
DATA k<>+0x78(SB)/4, $0x06ca6351; DATA k<>+0x7c(SB)/4, $0x14292967
DATA k<>+0x80(SB)/4, $0x27b70a85; DATA k<>+0x84(SB)/4, $0x2e1b2138
DATA k<>+0x88(SB)/4, $0x4d2c6dfc; DATA k<>+0x8c(SB)/4, $0x53380d13
DATA k<>+0x90(SB)/4, $0x650a7354; DATA k<>+0x94(SB)/4, $0x766a0abb
DATA k<>+0x98(SB)/4, $0x81c2c92e; DATA k<>+0x9c(SB)/4, $0x92722c85
DATA k<>+0xa0(SB)/4, $0xa2bfe8a1; DATA k<>+0xa4(SB)/4, $0xa81a664b
DATA k<>+0xa8(SB)/4, $0xc24b8b70; DATA k<>+0xac(SB)/4, $0xc76c51a3
DATA k<>+0xb0(SB)/4, $0xd192e819; DATA k<>+0xb4(SB)/4, $0xd6990624
DATA k<>+0xb8(SB)/4, $0xf40e3585; DATA k<>+0xbc(SB)/4, $0x106aa070
DATA k<>+0xc0(SB)/4, $0x19a4c116; DATA k<>+0xc4(SB)/4, $0x1e376c08
DATA k<>+0xc8(SB)/4, $0x2748774c; DATA k<>+0xcc(SB)/4, $0x34b0bcb5
DATA k<>+0xd0(SB)/4, $0x391c0cb3; DATA k<>+0xd4(SB)/4, $0x4ed8aa4a
DATA k<>+0xd8(SB)/4, $0x5b9cca4f; DATA k<>+0xdc(SB)/4, $0x682e6ff3
DATA k<>+0xe0(SB)/4, $0x748f82ee; DATA k<>+0xe4(SB)/4, $0x78a5636f
DATA k<>+0xe8(SB)/4, $0x84c87814; DATA k<>+0xec(SB)/4, $0x8cc70208
DATA k<>+0xf0(SB)/4, $0x90befffa; DATA k<>+0xf4(SB)/4, $0xa4506ceb
DATA k<>+0xf8(SB)/4, $0xbef9a3f7; DATA k<>+0xfc(SB)/4, $0xc67178f2
GLOBL k<>(SB), RODATA|NOPTR, $256

// bigEndian is the mask with which PSHUFB swaps the bytes of each of four words.
DATA bigEndian<>+0(SB)/8, $0x0405060700010203
DATA bigEndian<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL bigEndian<>(SB), RODATA|NOPTR, $16

// The two streams are A and B. In the comments a register's words stand from the
// highest to the lowest, so ABEF has A in its bits 127 to 96.
//
// SHA256RNDS2 wants a chaining value as ABEF and CDGH, and the sums of W and K of its
// two rounds in the low half of X0. W, the message schedule, has 64 words; each
// stream's registers W0 to W3 hold the latest sixteen of them, four each, as a ring.
#define A_ABEF X1
#define A_CDGH X2
#define A_W0   X3
#define A_W1   X4
#define A_W2   X5
#define A_W3   X6

#define B_ABEF X7
#define B_CDGH X8
#define B_W0   X9
#define B_W1   X10
#define B_W2   X11
#define B_W3   X12

#define TMP  X13
#define SWAP X14

// PACK loads the chaining value at h: its words DCBA and HGFE become ABEF and CDGH.
#define PACK(h, abef, cdgh) \
	MOVOU   0(h), abef;           \
	MOVOU   16(h), cdgh;          \
	PSHUFD  $0xB1, abef, abef;    \ // CDAB
	PSHUFD  $0x1B, cdgh, cdgh;    \ // EFGH
	MOVO    abef, TMP;            \
	PALIGNR $8, cdgh, abef;       \ // ABEF
	PBLENDW $0xF0, TMP, cdgh        // CDGH

// UNPACK is the reverse of PACK. It destroys both registers.
#define UNPACK(h, abef, cdgh) \
	PSHUFD  $0x1B, abef, abef;    \ // FEBA
	PSHUFD  $0xB1, cdgh, cdgh;    \ // DCHG
	MOVO    abef, TMP;            \
	PBLENDW $0xF0, cdgh, abef;    \ // DCBA
	PALIGNR $8, TMP, cdgh;        \ // HGFE
	MOVOU   abef, 0(h);           \
	MOVOU   cdgh, 16(h)

// LOAD reads four words of a block.
#define LOAD(src, w) \
	MOVOU  src, w; \
	PSHUFB SWAP, w

// ROUNDS runs four rounds, with the words w and those at offset n of k. Two rounds
// turn ABEF into the next CDGH, so the registers change roles twice.
#define ROUNDS(n, w, abef, cdgh) \
	MOVOU       n(AX), X0;      \
	PADDL       w, X0;          \
	SHA256RNDS2 X0, abef, cdgh; \
	PSHUFD      $0x0E, X0, X0;  \
	SHA256RNDS2 X0, cdgh, abef

// The next four words of the schedule are, for t from 16,
//
//	W[t] = σ1(W[t-2]) + W[t-7] + σ0(W[t-15]) + W[t-16]
//
// BEGIN puts the last two terms into the register of W[t-16], w0, once that is not
// needed any more; w1 is the register behind it. FINISH adds the other two, two steps
// later: w2 and w3 hold the eight words before W[t].
#define BEGIN(w0, w1) \
	SHA256MSG1 w1, w0

#define FINISH(w0, w2, w3) \
	MOVO       w3, TMP;     \
	PALIGNR    $4, w2, TMP; \ // W[t-4] to W[t-7]
	PADDL      TMP, w0;     \
	SHA256MSG2 w3, w0

// ADDSAVED adds half a chaining value from before the block.
#define ADDSAVED(saved, half) \
	MOVOU saved, TMP; \
	PADDL TMP, half

// A step is four rounds of both streams, with the words a0 and b0. Of the schedule,
// STEP_F and STEP_FB finish a1 and b1, the words of the next step; STEP_B and STEP_FB
// begin a3 and b3, which were the words of the step before. The rounds of A and of B
// depend on nothing of each other, so that the processor itself interleaves them, as
// it does the schedule, whichever order they stand in: other orders were as fast.
#define STEP(n, a0, b0) \
	ROUNDS(n, a0, A_ABEF, A_CDGH); \
	ROUNDS(n, b0, B_ABEF, B_CDGH)

#define STEP_B(n, a0, a3, b0, b3) \
	BEGIN(a3, a0); \
	BEGIN(b3, b0); \
	STEP(n, a0, b0)

#define STEP_F(n, a0, a1, a3, b0, b1, b3) \
	FINISH(a1, a3, a0); \
	FINISH(b1, b3, b0); \
	STEP(n, a0, b0)

#define STEP_FB(n, a0, a1, a3, b0, b1, b3) \
	FINISH(a1, a3, a0); \
	FINISH(b1, b3, b0); \
	BEGIN(a3, a0);      \
	BEGIN(b3, b0);      \
	STEP(n, a0, b0)

// func blocks(a, b *[8]uint32, p, q []byte)
TEXT ·blocks(SB), NOSPLIT, $64-64
	MOVQ a+0(FP), DI
	MOVQ b+8(FP), SI
	MOVQ p_base+16(FP), R8
	MOVQ p_len+24(FP), CX
	MOVQ q_base+40(FP), R9
	SHRQ $6, CX
	JZ   done

	LEAQ  k<>(SB), AX
	MOVOU bigEndian<>(SB), SWAP
	PACK(DI, A_ABEF, A_CDGH)
	PACK(SI, B_ABEF, B_CDGH)

block:
	MOVOU A_ABEF, 0(SP)
	MOVOU A_CDGH, 16(SP)
	MOVOU B_ABEF, 32(SP)
	MOVOU B_CDGH, 48(SP)

	LOAD(0(R8), A_W0)
	LOAD(0(R9), B_W0)
	STEP(0x00, A_W0, B_W0)
	LOAD(16(R8), A_W1)
	LOAD(16(R9), B_W1)
	STEP_B(0x10, A_W1, A_W0, B_W1, B_W0)
	LOAD(32(R8), A_W2)
	LOAD(32(R9), B_W2)
	STEP_B(0x20, A_W2, A_W1, B_W2, B_W1)
	LOAD(48(R8), A_W3)
	LOAD(48(R9), B_W3)
	STEP_FB(0x30, A_W3, A_W0, A_W2, B_W3, B_W0, B_W2)
	STEP_FB(0x40, A_W0, A_W1, A_W3, B_W0, B_W1, B_W3)
	STEP_FB(0x50, A_W1, A_W2, A_W0, B_W1, B_W2, B_W0)
	STEP_FB(0x60, A_W2, A_W3, A_W1, B_W2, B_W3, B_W1)
	STEP_FB(0x70, A_W3, A_W0, A_W2, B_W3, B_W0, B_W2)
	STEP_FB(0x80, A_W0, A_W1, A_W3, B_W0, B_W1, B_W3)
	STEP_FB(0x90, A_W1, A_W2, A_W0, B_W1, B_W2, B_W0)
	STEP_FB(0xa0, A_W2, A_W3, A_W1, B_W2, B_W3, B_W1)
	STEP_FB(0xb0, A_W3, A_W0, A_W2, B_W3, B_W0, B_W2)
	STEP_FB(0xc0, A_W0, A_W1, A_W3, B_W0, B_W1, B_W3)
	STEP_F(0xd0, A_W1, A_W2, A_W0, B_W1, B_W2, B_W0)
	STEP_F(0xe0, A_W2, A_W3, A_W1, B_W2, B_W3, B_W1)
	STEP(0xf0, A_W3, B_W3)

	ADDSAVED(0(SP), A_ABEF)
	ADDSAVED(16(SP), A_CDGH)
	ADDSAVED(32(SP), B_ABEF)
	ADDSAVED(48(SP), B_CDGH)

	ADDQ $64, R8
	ADDQ $64, R9
	DECQ CX
	JNZ  block

	UNPACK(DI, A_ABEF, A_CDGH)
	UNPACK(SI, B_ABEF, B_CDGH)

done:
	RET
