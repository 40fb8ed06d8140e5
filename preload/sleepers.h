// SPDX-License-Identifier: MIT
// close() under a thread that sleeps in a receive or send: the kernel's call holds the open file until it returns, and so must
// ours. The closing thread leaves the stream a hidden descriptor (the stand-in), which the sleeper goes on with; the last of them
// closes it.
//
// Invariant: while Stream::sleepers is not 0, the last close of the stream finds it and leaves a stand-in. A sleeper counts itself, then
// looks at the table (its number still names the stream); the closing thread takes the number out of the table after it has looked at the
// count. So either the sleeper sees that its number is gone and does not sleep, or it has been seen.
#pragma once
#include "preload/stream.h"

namespace mpklink {

// Before a sleep of a receive or send on `fd`. False: the number is closed; nothing was counted.
bool enter_sleep(int fd, Stream* s);
void leave_sleep(Stream* s);

// Before the program's descriptor `fd` is closed or overwritten. A stream without sleepers, or none: nothing happens.
void keep_for_sleepers(int fd);
// The hidden descriptor of a stream whose number was closed, or -1.
int stand_in(const Stream* s);
// A forked child has no sleepers: its copy goes.
void drop_stand_in(Stream* s);

}  // namespace mpklink
