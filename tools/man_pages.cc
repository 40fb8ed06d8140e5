// SPDX-License-Identifier: MIT
#include "tools/man_pages.h"

#include "preload/reasons.h"
#include "tools/roff.h"
#include "tools/settings_table.h"

namespace mpklink {
namespace {

/// "run a program" -> "Run a program."
std::string sentence(std::string text) {
  if (!text.empty() && text[0] >= 'a' && text[0] <= 'z') text[0] = static_cast<char>(text[0] - 'a' + 'A');
  return text.empty() || text.back() == '.' ? text : text + ".";
}

// ---- commands ----

void add_options(Roff* page, const CommandInfo& command) {
  for (const OptionInfo& option : command.options) {
    std::string names;
    for (const std::string& name : option.names) names += (names.empty() ? "" : ", ") + name;
    page->item(option.positional ? "" : names, option.positional ? names : option.placeholder, option.help);
  }
}

std::string synopsis(const CommandInfo& command) {
  std::string text = "\\fB" + Roff::escape(command.path, true) + "\\fR";
  if (!command.commands.empty()) return text + " \\fICOMMAND\\fR [\\fIOPTIONS\\fR]";
  text += " [\\fIOPTIONS\\fR]";
  for (const OptionInfo& option : command.options) {
    if (option.positional) text += " \\fI" + Roff::escape(option.names.front(), true) + "\\fR";
  }
  return command.runs_program ? text + " [\\fB\\-\\-\\fR] \\fIprogram\\fR [\\fIarguments\\fR]" : text;
}

/// The notes and the examples of --help.
void add_footer(Roff* page, const CommandInfo& command, bool examples) {
  const std::string mark = "Examples:\n";
  const std::size_t at = command.footer.find(mark);
  if (!examples) return page->text(command.footer.substr(0, std::min(at, command.footer.size())));
  if (at == std::string::npos) return;
  std::string lines = command.footer.substr(at + mark.size());
  for (std::size_t i = lines.find("\n  "); i != std::string::npos; i = lines.find("\n  ", i + 1)) lines.erase(i + 1, 2);
  page->literal(lines.rfind("  ", 0) == 0 ? lines.substr(2) : lines);
}

void add_exit_status(Roff* page, bool runs_program) {
  page->section("EXIT STATUS");
  if (runs_program) {
    page->item("the program's", "", "It ran. With --report: 128 + the signal that ended it, as a shell has it.");
    page->item("2", "", "Wrong use: an unknown option, an impossible value, no program, a mistake in the configuration file.");
    page->item("3", "", "The configuration file cannot be read, or the output cannot be written.");
    page->item("126", "", "The program, or the library, is there but cannot be used.");
    page->item("127", "", "The program was not found.");
    return;
  }
  page->item("0", "", "It worked.");
  page->item("1", "", "It worked, and the answer is not \"all well\", or is \"no\".");
  page->item("2", "", "Wrong use: an unknown option, an impossible value.");
  page->item("3", "", "It could not be done: no permission, no such process, disk full, not that kernel.");
}

void add_see_also(Roff* page, const std::string& self) {
  page->section("SEE ALSO");
  std::string list;
  for (const char* other : {"mpklink(1)", "mpklink.toml(5)", "libmpklink(7)", "mpklink-reasons(7)"}) {
    if (self != other) list += (list.empty() ? "" : ",\n") + std::string(other);
  }
  page->text(list);
}

ManPage command_page(const CommandInfo& command, const std::string& version) {
  const std::string name = "mpklink-" + command.name;
  Roff page(name, 1, version, command.summary);
  page.section("SYNOPSIS");
  page.line(synopsis(command));
  for (const CommandInfo& inner : command.commands) {
    page.line(".br");
    page.line(synopsis(inner));
  }
  page.section("DESCRIPTION");
  page.text(sentence(command.summary));
  add_footer(&page, command, false);
  page.section("OPTIONS");
  add_options(&page, command);
  for (const CommandInfo& inner : command.commands) {
    page.subsection(Roff::escape("\"" + inner.path + "\""));
    page.text(sentence(inner.summary));
    add_footer(&page, inner, false);
    add_options(&page, inner);
    add_footer(&page, inner, true);
  }
  add_exit_status(&page, command.runs_program);
  page.section("EXAMPLES");
  add_footer(&page, command, true);
  add_see_also(&page, name + "(1)");
  return {name, 1, page.str()};
}

ManPage tool_page(const CommandInfo& tool, const std::string& version) {
  Roff page("mpklink", 1, version, "loopback TCP through guarded shared memory");
  page.section("SYNOPSIS");
  page.line(synopsis(tool));
  page.section("DESCRIPTION");
  page.text(tool.summary + "\n\nEach command has a page of its own, mpklink-COMMAND(1), and --help with examples. Nothing is printed unless asked for; "
            "every error says what to type next. With --json a command prints one document of JSON.");
  page.section("COMMANDS");
  for (const CommandInfo& command : tool.commands) page.item("mpklink " + command.name, "", command.summary);
  page.section("OPTIONS");
  add_options(&page, tool);
  add_exit_status(&page, false);
  page.text("mpklink run ends with the program's code, or 126 and 127; see mpklink-run(1).");
  page.section("EXAMPLES");
  add_footer(&page, tool, true);
  add_see_also(&page, "mpklink(1)");
  return {"mpklink", 1, page.str()};
}

// ---- the others ----

ManPage reasons_page(const std::string& version) {
  Roff page("mpklink-reasons", 7, version, "why a connection is not accelerated");
  page.section("DESCRIPTION");
  page.text("A connection that stays on TCP, or comes back to it, has one of these reasons. The statistics (MPKLINK_STATS), the log, the commands\n"
            "of mpklink(1) and its metrics call them by the same words.");
  page.section("REASONS");
  for (const ReasonText& reason : kReasonTexts) {
    page.item(reason.slug, "", std::string(reason.sentence) + " Remedy: " + reason.remedy);
  }
  add_see_also(&page, "mpklink-reasons(7)");
  return {"mpklink-reasons", 7, page.str()};
}

std::string values_of(const Setting& setting) {
  std::string text = setting.values;
  for (std::size_t at = text.find('|'); at != std::string::npos; at = text.find('|', at + 3)) text.replace(at, 1, " | ");
  return text;
}

void add_settings(Roff* page, bool variables) {
  for (const Setting& setting : kSettings) {
    if (!variables && std::string(setting.key) == "rules") continue;
    page->item(variables ? variable_of(setting) + "=" : std::string(setting.key) + " =", values_of(setting),
               std::string(setting.help) + ". Default: " + setting.standard + ".");
  }
}

void add_rule_conditions(Roff* page) {
  page->item("exe", "PATTERN", "the program at this end: a pattern with * and ?, of the whole path of its executable when it has a slash, else of the path's "
                               "last component. A script's is its interpreter.");
  page->item("port", "PORT|FROM-TO", "the port that was connected to, at both ends");
  page->item("address (flat form: addr)", "ADDRESS|NETWORK", "the address that was connected to: 127.0.0.1, 127.0.0.0/8, ::1");
  page->item("direction (flat form: dir)", "in|out", "in: this program accepted the connection; out: it connected");
  page->item("uid", "NUMBER", "the user at the other end, known when the two ends have met");
}

ManPage toml_page(const std::string& version) {
  Roff page("mpklink.toml", 5, version, "configuration of mpklink run and mpklink env");
  page.section("DESCRIPTION");
  page.text("mpklink run(1) and mpklink env(1) read the first of these files; the library itself reads none, it gets variables.");
  page.literal("--config FILE\n$MPKLINK_CONFIG\n$XDG_CONFIG_HOME/mpklink/config.toml, or ~/.config/mpklink/config.toml\n/etc/mpklink/config.toml");
  page.text("The first two must be there; /dev/null means none. An unknown key or a wrong value is an error that names the line; check with\nmpklink rules check FILE.");
  page.text("One law for names: ring.kib here, MPKLINK_RING_KIB in the environment, --ring-kib as an option. An option wins over the environment, the\n"
            "environment over the file; in the file the chosen profile over [settings].");
  page.section("SETTINGS");
  page.text("In [settings] and in profiles:");
  add_settings(&page, false);
  page.section("PROFILES");
  page.text("[profile.NAME] holds settings that --profile NAME, MPKLINK_PROFILE or profile in [settings] choose. Its own key profile names the built-in\n"
            "one it starts from:");
  page.item("safe", "", "shares memory only with the same user, never spins, upgrades later");
  page.item("balanced", "", "the default");
  page.item("latency", "", "spins as long as it may, upgrades at once");
  page.section("RULES");
  page.text("Each [[rule]] has an action, accelerate or ignore, and conditions. The first rule that matches decides; what none matches is accelerated. A\n"
            "rule matches when all kinds of conditions that it has are met, each by one of its values (a list is one of them). MPKLINK_PORTS must allow\n"
            "the connection, too. Each end decides for itself; one end that ignores a connection keeps both on TCP.");
  add_rule_conditions(&page);
  page.subsection("\"The flat form\"");
  page.text("MPKLINK_RULES and --rules have rules separated by semicolons, their conditions by commas; a condition may be there several times:");
  page.literal("ignore,port=22,port=6000-6010;accelerate,exe=nginx,dir=in,addr=127.0.0.0/8,uid=33");
  page.text("mpklink run refuses a mistake. The library, which finds one in its environment, reports it once and keeps unclear connections on TCP: a rule\n"
            "with a mistake ignores, and the kind of condition with the mistake (all of them, when its name is not known) is left out of it. Conditions beyond 60 for one program: from there on\n"
            "all is ignored.");
  page.section("EXAMPLES");
  page.literal("[settings]\nprofile = \"web\"\nlog = \"warn\"\n\n[profile.web]\nprofile = \"latency\"\nring.kib = 512\n\n# the database stays on TCP, but for its own tools\n"
               "[[rule]]\naction = \"accelerate\"\nexe = [\"psql\", \"/usr/lib/postgresql/*\"]\n\n[[rule]]\naction = \"ignore\"\nport = [5432, \"6000-6010\"]");
  add_see_also(&page, "mpklink.toml(5)");
  return {"mpklink.toml", 5, page.str()};
}

ManPage library_page(const std::string& version) {
  Roff page("libmpklink", 7, version, "a library to preload that moves loopback TCP through guarded shared memory");
  page.section("SYNOPSIS");
  page.line("\\fBLD_PRELOAD=libmpklink.so\\fR \\fIprogram\\fR");
  page.section("DESCRIPTION");
  page.text("With the library at both ends of a TCP connection within one machine, its bytes go through shared memory that a memory protection key keeps\n"
            "closed to everything else in the process. TCP stays underneath: every doubt is answered by staying on it, and mpklink-reasons(7) says why.");
  page.text("A process shows its connections to mpklink ss and the other commands of mpklink(1), of the same user.");
  page.section("ENVIRONMENT");
  page.text("An unknown value is reported once on stderr and the default used. An unclear rule is no default: see mpklink.toml(5).");
  add_settings(&page, true);
  add_see_also(&page, "libmpklink(7)");
  return {"libmpklink", 7, page.str()};
}

}  // namespace

std::vector<ManPage> man_pages(const CommandInfo& tool, const std::string& version) {
  std::vector<ManPage> pages = {tool_page(tool, version)};
  for (const CommandInfo& command : tool.commands) {
    if (command.name != "reasons") pages.push_back(command_page(command, version));
  }
  pages.push_back(toml_page(version));
  pages.push_back(library_page(version));
  pages.push_back(reasons_page(version));
  return pages;
}

}  // namespace mpklink
