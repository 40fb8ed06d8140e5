// SPDX-License-Identifier: MIT
// Reads the note that preload/version_note.cc puts into the library. The file is input: nothing in it is believed
// unchecked.
#include <elf.h>

#include <cstring>

#include "tools/doctor_proc.h"

namespace mpklink {
namespace {

struct Description {
  std::uint32_t layout, status;
  char text[16];
};

template <class T>
bool copy_from(const std::string& bytes, std::uint64_t at, T* out) {
  if (at > bytes.size() || bytes.size() - at < sizeof *out) return false;
  memcpy(out, bytes.data() + at, sizeof *out);
  return true;
}

std::uint64_t padded(std::uint64_t n) {
  return (n + 3) & ~std::uint64_t{3};
}

/// Among the notes in [at, end), all of alignment 4.
bool find_note(const std::string& bytes, std::uint64_t at, std::uint64_t end, Description* out) {
  Elf64_Nhdr note;
  while (at < end && copy_from(bytes, at, &note)) {
    const std::uint64_t name = at + sizeof note, description = name + padded(note.n_namesz);
    char found[8];
    const bool ours =
        note.n_namesz == sizeof found && copy_from(bytes, name, &found) && memcmp(found, "mpklink", sizeof found) == 0;
    if (ours && note.n_descsz >= sizeof *out) return copy_from(bytes, description, out);
    at = description + padded(note.n_descsz);
  }
  return false;
}

}  // namespace

LibraryVersion library_version(const std::string& path) {
  const std::string bytes = read_whole(path);
  Elf64_Ehdr eh;
  if (!copy_from(bytes, 0, &eh) || memcmp(eh.e_ident, ELFMAG, SELFMAG) != 0 || eh.e_phentsize != sizeof(Elf64_Phdr))
    return {};
  for (unsigned i = 0; i < eh.e_phnum; ++i) {
    Elf64_Phdr ph;
    Description found;
    if (!copy_from(bytes, eh.e_phoff + std::uint64_t{i} * sizeof ph, &ph)) return {};
    if (ph.p_type != PT_NOTE || ph.p_align == 8 || ph.p_offset > bytes.size() || ph.p_filesz > bytes.size()) continue;
    if (find_note(bytes, ph.p_offset, ph.p_offset + ph.p_filesz, &found)) {
      return {std::string(found.text, strnlen(found.text, sizeof found.text)), found.layout};
    }
  }
  return {};
}

}  // namespace mpklink
