// SPDX-License-Identifier: MIT
#include "elf_check.h"

#include <elf.h>
#include <endian.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "file_bytes.h"

namespace mpklink {
namespace {

// The kernel's own limits (fs/binfmt_elf.c): it refuses more, so we need not read more.
constexpr uint64_t kMaxHeadersBytes = 65536;
constexpr uint64_t kMaxLoaderBytes = 4096;
// Notes are small; one that claims to be large is not read to its end.
constexpr uint64_t kMaxNotesBytes = 65536;

ElfInfo malformed(std::string why) {
  ElfInfo info;
  info.kind = ElfKind::kMalformed;
  info.problem = "a damaged ELF file (" + std::move(why) + ")";
  return info;
}

std::string machine_name(unsigned machine, bool is_64) {
  switch (machine) {
    case EM_386:
      return "32-bit x86";
    case EM_X86_64:
      return is_64 ? "x86-64" : "x32 (x86-64 with 32-bit pointers)";
    case EM_AARCH64:
      return "arm64";
    case EM_ARM:
      return "32-bit arm";
    case EM_RISCV:
      return is_64 ? "riscv64" : "riscv32";
    case EM_PPC64:
      return "ppc64";
    case EM_S390:
      return "s390";
    case EM_MIPS:
      return "mips";
    default:
      return fmt::format("ELF machine number {}", machine);
  }
}

/// Class, byte order and machine have the same place in every ELF file. Sets kForeign when they are not ours.
bool is_foreign(const unsigned char* ident, uint16_t machine, ElfInfo* info) {
  bool is_64 = ident[EI_CLASS] == ELFCLASS64;
  bool is_little = ident[EI_DATA] == ELFDATA2LSB;
  unsigned value = is_little ? le16toh(machine) : be16toh(machine);
  if (is_64 && is_little && value == EM_X86_64) return false;
  info->kind = ElfKind::kForeign;
  info->problem = "built for " + machine_name(value, is_64) + (is_little ? "" : ", big-endian");
  return true;
}

bool has_go_note(const FileBytes& file, const Elf64_Phdr& ph) {
  std::vector<char> notes(std::min<uint64_t>(ph.p_filesz, kMaxNotesBytes));
  if (!file.read(ph.p_offset, notes.data(), notes.size())) return false;
  // Alignment of names and descriptors is 4, but 8 in a segment that says so (gABI).
  const uint64_t align = ph.p_align == 8 ? 8 : 4;
  auto padded = [align](uint64_t n) { return (n + align - 1) & ~(align - 1); };
  for (uint64_t at = 0; notes.size() - at >= sizeof(Elf64_Nhdr);) {
    Elf64_Nhdr note;
    memcpy(&note, notes.data() + at, sizeof note);
    uint64_t name_at = at + sizeof note;
    if (note.n_namesz == 4 && notes.size() - name_at >= 4 && memcmp(notes.data() + name_at, "Go\0\0", 4) == 0)
      return true;
    // 32-bit sizes, 64-bit sums: they cannot wrap.
    at = padded(padded(name_at + note.n_namesz) + note.n_descsz);
    if (at >= notes.size()) break;
  }
  return false;
}

ElfInfo read_loader(const FileBytes& file, const Elf64_Phdr& ph, ElfInfo info) {
  if (ph.p_filesz < 2 || ph.p_filesz > kMaxLoaderBytes) return malformed("its loader name has an impossible length");
  std::string name(ph.p_filesz, '\0');
  if (!file.read(ph.p_offset, name.data(), name.size())) return malformed("its loader name lies outside the file");
  if (name.back() != '\0') return malformed("its loader name does not end");
  info.loader = name.c_str();  // NOLINT(readability-redundant-string-cstr): up to the first zero byte
  info.kind = ElfKind::kDynamic;
  return info;
}

}  // namespace

ElfInfo inspect_elf(int fd) {
  ElfInfo info;
  FileBytes file(fd);
  Elf64_Ehdr eh;
  if (!file.read(0, eh.e_ident, SELFMAG) || memcmp(eh.e_ident, ELFMAG, SELFMAG) != 0) return info;
  constexpr uint64_t kCommonBytes = offsetof(Elf64_Ehdr, e_version);
  if (!file.read(0, &eh, kCommonBytes)) return malformed("it ends within its header");
  if (is_foreign(eh.e_ident, eh.e_machine, &info)) return info;
  if (!file.read(0, &eh, sizeof eh)) return malformed("it ends within its header");
  if (eh.e_type != ET_EXEC && eh.e_type != ET_DYN) return malformed("it is neither a program nor a library");
  if (eh.e_phentsize != sizeof(Elf64_Phdr) || eh.e_phnum == 0) return malformed("it has no usable program headers");

  std::vector<Elf64_Phdr> headers(eh.e_phnum);
  uint64_t bytes = headers.size() * sizeof(Elf64_Phdr);
  if (bytes > kMaxHeadersBytes) return malformed("it has too many program headers");
  if (!file.read(eh.e_phoff, headers.data(), bytes)) return malformed("it ends within its program headers");

  info.kind = ElfKind::kStatic;
  info.is_shared_object = eh.e_type == ET_DYN;
  for (const Elf64_Phdr& ph : headers) {
    if (ph.p_type == PT_LOAD && !file.contains(ph.p_offset, ph.p_filesz)) return malformed("it is cut short");
    if (ph.p_type == PT_NOTE && !info.is_go) info.is_go = has_go_note(file, ph);
  }
  auto interp = std::find_if(headers.begin(), headers.end(), [](const auto& ph) { return ph.p_type == PT_INTERP; });
  return interp == headers.end() ? info : read_loader(file, *interp, info);
}

}  // namespace mpklink
