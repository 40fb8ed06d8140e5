// SPDX-License-Identifier: MIT
// How many processes have a connection that was not upgraded when one of them forked. Servers that accept, fork and close
// (databases, inetd's kin) leave it to the child alone; it may then be upgraded like any other. The count lies in memory shared
// by the family; a process that is killed never gives its share back, and the connection stays on TCP.
#pragma once
#include "preload/stream.h"

namespace mpklink {

// Before a fork: one process more will have it. False: no room to count.
bool add_holder(Stream* s);
// This process has it no longer. Once.
void drop_holder(Stream* s);
// Whether another process has it too.
bool held_by_others(const Stream* s);

}  // namespace mpklink
