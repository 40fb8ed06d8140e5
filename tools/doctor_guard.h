// SPDX-License-Identifier: MIT
#pragma once
#include "tools/doctor_checks.h"

namespace mpklink {

/// How bad it is to be without a guard, for these settings.
Level level_without_guard(const Settings& settings);

/// Has this process sound protection keys? `seccomp_filter`: one is in force here.
Finding check_guard(const Settings& settings, bool seccomp_filter);

}  // namespace mpklink
