// SPDX-License-Identifier: MIT
// close() under a thread that sleeps in a receive or send: the kernel's call holds the open file until it returns, and so must
// ours. The closing thread leaves the stream a hidden descriptor (the stand-in), which the sleeper goes on with; the last of them
// closes it.
//
// Invariant: a sleeper counts itself, then looks whether its number still names the stream; the closing thread takes the number out of
// the table, then looks at the count. Both steps are read-modify-writes: either the sleeper sees that its number is gone and does not
// sleep, or it has been seen, and a stand-in is there before the descriptor is closed. (It is also looked for before the number is taken, so that
// a sleeper that wakes in between finds it.) Between two sleeps of one call nobody is counted: a close in that moment ends the call with EBADF.
#pragma once
#include "preload/stream.h"

namespace mpklink {

// Before a sleep of a receive or send on `fd`. False: the number is closed; nothing was counted.
bool enter_sleep(int fd, Stream* s);
void leave_sleep(Stream* s);

// The program's descriptor `fd` of `s` is about to be closed or overwritten; before and after it leaves the table. A stream without
// sleepers: nothing happens.
void keep_for_sleepers(int fd, Stream* s);
// As forget_fd, of a descriptor that is still open: from here on nothing of ours uses the number.
void forget_open_fd(int fd);
// The hidden descriptor of a stream whose number was closed, or -1.
int stand_in(const Stream* s);
// dup2 wants its number: it is `to` now.
void move_stand_in(Stream* s, int from, int to);
// A forked child has no sleepers: its copy goes.
void drop_stand_in(Stream* s);
void sleepers_forked_child();

}  // namespace mpklink
