// SPDX-License-Identifier: MIT
#include "shm/user_copy.h"

// In assembly because a handler must be able to leave it at any instruction: no stack, %rcx always holds the bytes left
// (all of them, but in the string move, which counts), and the tail of a block is loaded before anything is stored.
asm(R"(
  .pushsection .text
  .p2align 6
  .globl mpklink_user_copy
  .hidden mpklink_user_copy
  .type mpklink_user_copy, @function
mpklink_user_copy:
  .cfi_startproc
  endbr64
  mov %rdx, %rcx
  cmp $16, %rdx
  jb 3f
  cmp $512, %rdx
  ja 2f
  movups -16(%rsi,%rdx), %xmm1
  lea -16(%rdx), %r8
  xor %eax, %eax
1:
  movups (%rsi,%rax), %xmm0
  movups %xmm0, (%rdi,%rax)
  add $16, %rax
  cmp %r8, %rax
  jb 1b
  movups %xmm1, (%rdi,%r8)
  xor %eax, %eax
  ret
2:
  rep movsb
  xor %eax, %eax
  ret
3:
  cmp $8, %edx
  jb 4f
  mov (%rsi), %r8
  mov -8(%rsi,%rdx), %r9
  mov %r8, (%rdi)
  mov %r9, -8(%rdi,%rdx)
  xor %eax, %eax
  ret
4:
  cmp $4, %edx
  jb 5f
  mov (%rsi), %r8d
  mov -4(%rsi,%rdx), %r9d
  mov %r8d, (%rdi)
  mov %r9d, -4(%rdi,%rdx)
  xor %eax, %eax
  ret
5:
  test %edx, %edx
  jz 7f
  xor %eax, %eax
6:
  movzbl (%rsi,%rax), %r8d
  movb %r8b, (%rdi,%rax)
  inc %eax
  cmp %edx, %eax
  jb 6b
7:
  xor %eax, %eax
  ret
  .globl mpklink_user_copy_end
  .hidden mpklink_user_copy_end
mpklink_user_copy_end:
  .globl mpklink_user_copy_fault
  .hidden mpklink_user_copy_fault
mpklink_user_copy_fault:
  mov %rcx, %rax
  ret
  .cfi_endproc
  .size mpklink_user_copy, . - mpklink_user_copy
  .popsection
)");
