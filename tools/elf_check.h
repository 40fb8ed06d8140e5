// SPDX-License-Identifier: MIT
// What an ELF file is, as far as LD_PRELOAD is concerned. The file is input: nothing in it is believed unchecked.
#pragma once

#include <string>

namespace mpklink {

enum class ElfKind {
  kNotElf,     // no ELF magic: a script, or something for /bin/sh
  kMalformed,  // ELF magic, but not a file the kernel or the loader could use
  kForeign,    // a sound header for another machine, word size or byte order
  kStatic,     // no PT_INTERP: no dynamic loader runs, so nothing can be preloaded
  kDynamic,    // names a dynamic loader
};

struct ElfInfo {
  ElfKind kind = ElfKind::kNotElf;
  std::string problem;            // kMalformed, kForeign: the end of a sentence that begins with "it is "
  std::string loader;             // kDynamic: PT_INTERP
  bool is_shared_object = false;  // ET_DYN: a library, or a position independent program
  bool is_go = false;             // has the note that Go's linker writes into every program
};

/// Reads the headers of the file open at `fd` (regular file, any content, any size).
ElfInfo inspect_elf(int fd);

}  // namespace mpklink
