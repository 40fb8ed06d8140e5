// SPDX-License-Identifier: MIT
// `mpklink rules check|print|test`: is the file good, what does it say, which rule wins for a connection and why.
#include <CLI/CLI.hpp>
#include <fmt/format.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "preload/settings.h"
#include "tools/command_support.h"
#include "tools/commands.h"
#include "tools/environment.h"
#include "tools/settings_table.h"

namespace mpklink {
namespace {

// ---- check ----

void check_file(const std::string& path, bool json) {
  std::string error;
  Config config;
  try {
    config = *load_config(path);
    effective_settings({}, config);  // also what is wrong with all of it together
  } catch (const ConfigError& e) {
    error = e.what();
  }
  if (json) {
    emit(fmt::format("{{\"file\":{},\"ok\":{},\"error\":{},\"settings\":{},\"profiles\":{},\"rules\":{}}}\n", json_string(path), error.empty(),
                     error.empty() ? "null" : json_string(error), config.settings.size(), config.profiles.size(), config.rules.size()));
  } else if (error.empty()) {
    emit(fmt::format("{}: good ({} settings, {} profiles, {} rules)\n", path, config.settings.size(), config.profiles.size(), config.rules.size()));
  } else {
    complain(error);
  }
  if (!error.empty()) throw CLI::RuntimeError(kExitDegraded);
}

// ---- print ----

/// Those in force: --rules, MPKLINK_RULES, the file's.
std::vector<ConfigRule> rules_in_force(const Choices& choices) {
  const std::optional<Config> config = load_config(choices.config);
  for (const Assignment& a : effective_settings(choices, config)) {
    if (a.name != "MPKLINK_RULES") continue;
    if (config && a.source == config->path) return config->rules;
    const std::string problem = value_problem(*find_setting("rules"), a.value);
    if (!problem.empty()) throw Refusal(kExitUsage, "MPKLINK_RULES: " + problem + "; see 'mpklink man mpklink.toml'");
    std::vector<ConfigRule> rules = rules_of_flat_form(a.value);
    for (ConfigRule& rule : rules) rule.where = a.source == "option" ? "--rules" : "MPKLINK_RULES";
    return rules;
  }
  return {};
}

std::string conditions_text(const ConfigRule& rule) {
  std::string text;
  for (const auto& [kind, value] : rule.conditions) text += (text.empty() ? "" : " ") + kind + "=" + value;
  return text.empty() ? "everything" : text;
}

const char* action_of(const ConfigRule& rule) {
  return rule.accelerate ? "accelerate" : "ignore";
}

void print_rules(const Choices& choices, bool flat, bool json) {
  const std::vector<ConfigRule> rules = rules_in_force(choices);
  if (flat) return emit(flat_form(rules) + "\n");
  std::string list;
  std::vector<std::vector<std::string>> rows;
  for (const ConfigRule& rule : rules) {
    rows.push_back({std::to_string(rows.size() + 1), action_of(rule), conditions_text(rule), rule.where});
    list += fmt::format("{}{{\"action\":\"{}\",\"rule\":{},\"where\":{}}}", list.empty() ? "" : ",", action_of(rule), json_string(flat_form(rule)),
                        json_string(rule.where));
  }
  if (json) return emit("[" + list + "]\n");
  rows.push_back({"", "accelerate", "everything else", ""});
  emit(format_table({{"", true}, {"ACTION"}, {"WHERE"}, {"FROM"}}, rows, 0));
}

// ---- test ----

struct TestRequest {
  Choices choices;
  std::string exe, connect, accept;
  std::int64_t uid = -1;
  bool json = false;
};

Connection connection_of(const TestRequest& request) {
  if (request.connect.empty() == request.accept.empty()) throw UsageError("say either --connect ADDRESS:PORT or --accept ADDRESS:PORT");
  const std::string& text = request.connect.empty() ? request.accept : request.connect;
  std::optional<Connection> connection = parse_endpoint(text);
  if (!connection) throw UsageError("'" + text + "' is no address and port; say 127.0.0.1:8080 or [::1]:8080");
  connection->exe = request.exe;
  connection->incoming = request.connect.empty();
  connection->uid = request.uid < 0 ? geteuid() : static_cast<std::uint32_t>(request.uid);
  return *connection;
}

/// MPKLINK_PORTS must allow it, too.
bool ports_allow(const std::string& ports, std::uint16_t port) {
  static std::string value;
  value = ports;
  const Settings settings = parse_settings([](const char* name) { return std::string("MPKLINK_PORTS") == name ? value.c_str() : nullptr; },
                                           [](const char*, const char*, const char*) {});
  return settings.port_allowed(port);
}

std::string effective_ports(const Choices& choices) {
  for (const Assignment& a : effective_settings(choices, load_config(choices.config))) {
    if (a.name == "MPKLINK_PORTS") return a.value;
  }
  return {};
}

struct Verdict {
  bool accelerate = true;
  std::string why;
  std::string trace;  // a line for each rule that was looked at
  std::string winner = "null";  // JSON
};

Verdict judge_connection(const std::vector<ConfigRule>& rules, const Connection& connection, const std::string& ports) {
  Verdict verdict;
  for (std::size_t i = 0; i < rules.size(); ++i) {
    const std::string difference = mismatch(rules[i], connection);
    verdict.trace += fmt::format("  {:>2} {:<10} {}: {}\n", i + 1, action_of(rules[i]), conditions_text(rules[i]),
                                 difference.empty() ? "matches" : difference);
    if (!difference.empty()) continue;
    verdict.accelerate = rules[i].accelerate;
    verdict.why = fmt::format("rule {} ({}): {} {}", i + 1, rules[i].where, action_of(rules[i]), conditions_text(rules[i]));
    verdict.winner = std::to_string(i + 1);
    break;
  }
  if (verdict.why.empty()) verdict.why = rules.empty() ? "there are no rules" : "no rule matches";
  if (!ports_allow(ports, connection.port)) {
    verdict.accelerate = false;
    verdict.why = fmt::format("MPKLINK_PORTS={} does not allow port {}", ports, connection.port);
    verdict.winner = "null";
  }
  return verdict;
}

void test_rules(const TestRequest& request) {
  const Connection connection = connection_of(request);
  const Verdict verdict = judge_connection(rules_in_force(request.choices), connection, effective_ports(request.choices));
  const char* action = verdict.accelerate ? "accelerate" : "ignore";
  if (request.json) {
    emit(fmt::format("{{\"action\":\"{}\",\"rule\":{},\"why\":{}}}\n", action, verdict.winner, json_string(verdict.why)));
  } else {
    emit(fmt::format("{}: {}\n{}", action, verdict.why, verdict.trace));
  }
  if (!verdict.accelerate) throw CLI::RuntimeError(kExitDegraded);
}

// ---- the command line ----

void add_sources(CLI::App* command, Choices* choices) {
  command->add_option("--config", choices->config, "configuration file, mpklink.toml(5)")->type_name("FILE");
  const auto take = [choices](const std::string& given) { choices->options["rules"] = given; };
  command->add_option_function<std::string>("--rules", take, "rules as MPKLINK_RULES has them, instead of the file's")->type_name("RULES");
}

void add_check(CLI::App* rules) {
  struct Request {
    std::string path;
    bool json = false;
  };
  const auto request = std::make_shared<Request>();
  CLI::App* check = rules->add_subcommand("check", "is a configuration file good (exit code 1: no)");
  check->add_option("file", request->path, "the file")->required()->type_name("FILE");
  add_json_flag(check, &request->json);
  add_examples(check, {{"mpklink rules check /etc/mpklink/config.toml", ""}});
  check->callback([request] { check_file(request->path, request->json); });
}

void add_print(CLI::App* rules) {
  struct Request {
    Choices choices;
    bool flat = false, json = false;
  };
  const auto request = std::make_shared<Request>();
  CLI::App* print = rules->add_subcommand("print", "the rules in force, in their order");
  add_sources(print, &request->choices);
  print->add_flag("--flat", request->flat, "as MPKLINK_RULES has them");
  add_json_flag(print, &request->json);
  add_examples(print, {{"mpklink rules print", ""}, {"MPKLINK_RULES=$(mpklink rules print --flat --config my.toml)", ""}});
  print->callback([request] { print_rules(request->choices, request->flat, request->json); });
}

void add_test(CLI::App* rules) {
  const auto request = std::make_shared<TestRequest>();
  CLI::App* test = rules->add_subcommand("test", "which rule wins for a connection, and why (exit code 1: it stays on TCP)");
  test->add_option("--exe", request->exe, "path or name of the program")->required()->type_name("FILE");
  test->add_option("--connect", request->connect, "where it connects to: 127.0.0.1:8080, [::1]:80")->type_name("ADDRESS:PORT");
  test->add_option("--accept", request->accept, "where it was connected to")->type_name("ADDRESS:PORT");
  test->add_option("--uid", request->uid, "the peer's user; without it, yours")->check(CLI::Range(std::int64_t{0}, std::int64_t{0xfffffffe}).description(""))->type_name("NUMBER");
  add_sources(test, &request->choices);
  add_json_flag(test, &request->json);
  add_examples(test,
               {{"mpklink rules test --exe nginx --connect 127.0.0.1:8080", ""},
                {"mpklink rules test --exe /usr/sbin/nginx --accept [::1]:80 --uid 33", ""},
                {"mpklink rules test --exe psql --connect 127.0.0.1:5432 --rules 'ignore,port=5432'", ""}},
               "A rule's port and address are those that were connected to, at both ends. Only connections within this machine are accelerated at all.");
  test->callback([request] { test_rules(*request); });
}

}  // namespace

void add_rules(CLI::App* app) {
  CLI::App* rules = app->add_subcommand("rules", "rules by program, port, address, user and direction: check, print, test");
  rules->require_subcommand(1);
  add_examples(rules, {{"mpklink rules check my.toml", ""}, {"mpklink rules test --exe nginx --connect 127.0.0.1:8080", ""}});
  add_check(rules);
  add_print(rules);
  add_test(rules);
}

}  // namespace mpklink
