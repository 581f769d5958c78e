#pragma once
// policy set of what is mounted, beside that of IMG:/directory (key_verbs.cpp).

#include <string>

#include "cli/report.h"
#include "cli/target.h"
#include "cli/verbs.h"

namespace latchkey::cli {

// Not of the form IMG:/path, or there all the same.
bool is_mounted_path(const std::string& target);
// An empty directory, made if missing, becomes encrypted. With `key` the key need not be present.
Exit set_mounted_policy(const Common& common, const std::string& path, const KeySource& key,
                        const std::string& key_id);

}  // namespace latchkey::cli
