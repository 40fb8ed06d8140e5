// SPDX-License-Identifier: MIT
// `mpklink reasons`, `mpklink man` and `mpklink completion`: what is known of reasons, settings and commands, in the form asked for.
#include <CLI/CLI.hpp>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <sys/stat.h>
#include <vector>

#include "preload/reasons.h"
#include "tools/command_support.h"
#include "tools/command_tree.h"
#include "tools/commands.h"
#include "tools/completion_scripts.h"
#include "tools/man_pages.h"

namespace mpklink {
namespace {

// ---- reasons ----

void print_reasons(const std::string& wanted, bool json) {
  std::string text, list;
  std::vector<std::string> slugs;
  for (const ReasonText& reason : kReasonTexts) {
    slugs.emplace_back(reason.slug);
    if (!wanted.empty() && wanted != reason.slug) continue;
    text += std::string(reason.slug) + "\n  " + reason.sentence + "\n  Remedy: " + reason.remedy + "\n";
    list += (list.empty() ? "" : ",") + std::string("{\"reason\":") + json_string(reason.slug) + ",\"sentence\":" + json_string(reason.sentence) +
            ",\"remedy\":" + json_string(reason.remedy) + "}";
  }
  if (text.empty()) {
    const std::string meant = nearest(wanted, slugs);
    throw UsageError("there is no reason '" + printable(wanted) + "'" + (meant.empty() ? "" : "; did you mean " + meant + "?"));
  }
  emit(json ? "[" + list + "]\n" : text);
}

// ---- man ----

/// By another name first, so that whoever looks sees a whole one; and the directory is newer than what it was made from.
void write_page(const std::string& directory, const ManPage& page) {
  const std::string where = directory + "/man" + std::to_string(page.section);
  const std::string path = where + "/" + page.name + "." + std::to_string(page.section);
  const std::string before = path + ".new";
  bool good = (mkdir(directory.c_str(), 0777) == 0 || errno == EEXIST) && (mkdir(where.c_str(), 0777) == 0 || errno == EEXIST);
  if (good) {
    std::ofstream file(before, std::ios::binary);
    file << page.text;
    file.close();
    good = file.good() && rename(before.c_str(), path.c_str()) == 0;
  }
  if (!good) throw Refusal(kExitUnavailable, path + " cannot be written: " + strerror(errno) + "; name another with --directory");
}

struct ManRequest {
  std::string page, directory;
  bool list = false, json = false;
};

void list_pages(const std::vector<ManPage>& pages, bool json) {
  std::string text;
  for (const ManPage& page : pages) {
    const std::string section = std::to_string(page.section);
    text += json ? (text.empty() ? "[" : ",") + std::string("{\"page\":") + json_string(page.name) + ",\"section\":" + section + "}"
                 : page.name + "(" + section + ")\n";
  }
  emit(json ? text + "]\n" : text);
}

void print_man(const CLI::App& tool, const ManRequest& request) {
  const std::vector<ManPage> pages = man_pages(describe(tool), MPKLINK_VERSION);
  if (request.list) return list_pages(pages, request.json);
  if (!request.directory.empty()) {
    for (const ManPage& page : pages) write_page(request.directory, page);
    return;
  }
  if (request.page.empty()) throw UsageError("say which page; mpklink man --list lists them");
  std::vector<std::string> names;
  for (const ManPage& page : pages) {
    names.push_back(page.name);
    if (request.page != page.name && "mpklink-" + request.page != page.name) continue;
    return emit(request.json ? "{\"page\":" + json_string(page.name) + ",\"roff\":" + json_string(page.text) + "}\n" : page.text);
  }
  const std::string meant = nearest(request.page, names);
  throw UsageError("there is no page '" + printable(request.page) + "'" + (meant.empty() ? "; mpklink man --list lists them" : "; did you mean " + meant + "?"));
}

}  // namespace

void add_reasons(CLI::App* app) {
  struct Request {
    std::string slug;
    bool json = false;
  };
  const auto request = std::make_shared<Request>();
  CLI::App* reasons = app->add_subcommand("reasons", "why connections are not accelerated, and what helps");
  std::string alternatives;
  for (const ReasonText& reason : kReasonTexts) alternatives += (alternatives.empty() ? "" : "|") + std::string(reason.slug);
  reasons->add_option("reason", request->slug, "only this one")->type_name(alternatives);
  add_json_flag(reasons, &request->json);
  add_examples(reasons, {{"mpklink reasons peer-absent", ""}, {"mpklink reasons --json", ""}});
  reasons->callback([request] { print_reasons(request->slug, request->json); });
}

void add_man(CLI::App* app) {
  const auto request = std::make_shared<ManRequest>();
  CLI::App* man = app->add_subcommand("man", "print a manual page, as roff");
  man->add_option("page", request->page, "mpklink, mpklink-run (or run) ..., mpklink.toml, libmpklink, mpklink-reasons")->type_name("PAGE");
  man->add_flag("--list", request->list, "list the pages");
  man->add_option("--directory", request->directory, "write all pages below this directory, in man1, man5 and man7")->type_name("DIR");
  add_json_flag(man, &request->json);
  add_examples(man, {{"mpklink man run | man -l -", "read it"}, {"mpklink man --directory ~/.local/share/man", "install them all"}});
  man->callback([app, request] { print_man(*app, *request); });
}

void add_completion(CLI::App* app) {
  struct Request {
    std::string shell;
    bool json = false;
  };
  const auto request = std::make_shared<Request>();
  CLI::App* completion = app->add_subcommand("completion", "print completions for a shell: bash, zsh or fish");
  completion->add_option("shell", request->shell, "the shell")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}))->type_name("bash|zsh|fish");
  add_json_flag(completion, &request->json);
  add_examples(completion,
               {{"source <(mpklink completion bash)", ""},
                {"mpklink completion zsh > ~/.zfunc/_mpklink", "a directory of $fpath"},
                {"mpklink completion fish > ~/.config/fish/completions/mpklink.fish", ""}});
  completion->callback([app, request] {
    const CommandInfo tool = describe(*app);
    const std::string script = request->shell == "bash" ? bash_completion(tool) : request->shell == "zsh" ? zsh_completion(tool) : fish_completion(tool);
    emit(request->json ? "{\"shell\":" + json_string(request->shell) + ",\"script\":" + json_string(script) + "}\n" : script);
  });
}

}  // namespace mpklink
