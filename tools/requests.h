// SPDX-License-Identifier: MIT
// Writes what a process is asked for into its status page (shm/status.h, Requests). Tools that ask at the same time take turns by a lock
// on the page's file, which the process itself never takes.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "tools/status_reader.h"

namespace mpklink {

// ---- off, on ----

/// Streams go back to TCP and new ones stay there: all, if `ports` is empty.
void ask_off(OpenPage* page, const std::vector<int>& ports);
/// Takes that back: for all, or for these ports; throws a Refusal when all streams are off, of which no port can be taken out.
void ask_on(OpenPage* page, const std::vector<int>& ports);

// ---- dump ----

/// A new name for the socket of a tap, which nobody can guess; it tells whose it is.
std::string new_tap_name();

/// Asks for records to be sent to the abstract socket `name`. 0: it is asked for, or was already; else the pid of the other dump, which is
/// alive and has the process.
pid_t ask_tap(OpenPage* page, const std::string& name, int port);
void withdraw_tap(OpenPage* page, const std::string& name);

}  // namespace mpklink
