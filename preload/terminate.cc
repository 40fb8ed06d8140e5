// SPDX-License-Identifier: MIT
// libstdc++'s own terminate handler prints the name of the exception and brings the C++ demangler with it: a third of the
// library, for a message nobody would see (nothing here throws). This definition keeps that archive member out.
#include <stdlib.h>

#include <exception>

namespace __cxxabiv1 {
extern std::terminate_handler __terminate_handler;
std::terminate_handler __terminate_handler __attribute__((visibility("hidden"))) = abort;
}  // namespace __cxxabiv1
