// SPDX-License-Identifier: MIT
#include "tools/completion_scripts.h"

#include <algorithm>
#include <vector>

#include "tools/settings_table.h"
#include "tools/text.h"

namespace mpklink {
namespace {

constexpr char kHead[] = "# SPDX-License-Identifier: MIT\n# Made by mpklink completion; do not edit.\n";

bool takes_file(const OptionInfo& option) {
  return option.placeholder == "FILE" || option.placeholder == "DIR";
}

std::string join(const std::vector<std::string>& words, const char* separator) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : separator) + word;
  return text;
}

std::vector<std::string> names_of(const std::vector<CommandInfo>& commands) {
  std::vector<std::string> names;
  for (const CommandInfo& command : commands) names.push_back(command.name);
  return names;
}

/// The command and all below it.
void flatten(const CommandInfo& command, std::vector<const CommandInfo*>* list) {
  list->push_back(&command);
  for (const CommandInfo& inner : command.commands) flatten(inner, list);
}

std::string replace_all(std::string text, const std::string& from, const std::string& to) {
  for (std::size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) text.replace(at, from.size(), to);
  return text;
}

// ---- bash ----

/// What is offered for words of one command: its options and commands, and the values of its options and arguments.
std::string bash_command(const CommandInfo& command) {
  std::vector<std::string> names;
  std::string values, arguments = shell_quote(join(names_of(command.commands), " "));
  for (const OptionInfo& option : command.options) {
    const std::string choices = join(choices_of(option.placeholder), " ");
    const std::string offered = takes_file(option) ? "@file" : choices;
    if (option.positional) {
      arguments = shell_quote(offered);
      continue;
    }
    names.insert(names.end(), option.names.begin(), option.names.end());
    if (option.placeholder.empty()) continue;
    values += "        " + join(option.names, "|") + ") values=" + shell_quote(offered) + " ;;\n";
  }
  return "    " + shell_quote(command.path) + ")\n      options=" + shell_quote(join(names, " ")) + "; arguments=" + arguments +
         "; program=" + (command.runs_program ? "1" : "") + "\n      case $1 in\n" + values + "        *) return 1 ;;\n      esac ;;\n";
}

constexpr char kBashTail[] = R"(
_mpklink() {
  local cur=${COMP_WORDS[COMP_CWORD]} path=mpklink option='' options='' arguments='' program='' values='' i word outer
  COMPREPLY=()
  _mpklink_words ''
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    if [[ $word == '=' ]]; then continue; fi
    if [[ -n $option ]]; then
      option=''
    elif [[ $word == -- && -n $program ]]; then
      _mpklink_program $((i + 1))
      return
    elif [[ $word == -* ]]; then
      if [[ $word != *=* ]] && _mpklink_words "$word"; then option=$word; fi
    else
      outer=$path
      path="$path $word"
      _mpklink_words ''
      if [[ -n $options ]]; then continue; fi
      path=$outer  # an argument, or the program
      _mpklink_words ''
      if [[ -n $program ]]; then
        _mpklink_program "$i"
        return
      fi
    fi
  done
  if [[ $cur == '=' ]]; then cur=''; fi
  if [[ -n $option ]]; then
    _mpklink_words "$option"
  elif [[ $cur == -* ]]; then
    values=$options
  elif [[ -n $program ]]; then
    _mpklink_program "$COMP_CWORD"
    return
  else
    values=$arguments
  fi
  if [[ $values == @file ]]; then
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
  else
    mapfile -t COMPREPLY < <(compgen -W "$values" -- "$cur")
  fi
}

# The rest of the line is another program's.
_mpklink_program() {
  if ((COMP_CWORD > $1)) && declare -F _command_offset >/dev/null; then
    _command_offset "$1"
  elif ((COMP_CWORD > $1)); then
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
  else
    mapfile -t COMPREPLY < <(compgen -c -- "$cur")
  fi
}

complete -F _mpklink mpklink
)";

// ---- zsh ----

/// For a '...' string in which _arguments and _describe read [ ] and :.
std::string zsh_text(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\'') {
      out += "'\\''";
    } else {
      if (c == '[' || c == ']' || c == ':' || c == '\\') out += '\\';
      out += c;
    }
  }
  return out;
}

std::string zsh_action(const OptionInfo& option) {
  const std::vector<std::string> choices = choices_of(option.placeholder);
  if (!choices.empty()) return "(" + join(choices, " ") + ")";
  return takes_file(option) ? "_files" : " ";
}

std::string zsh_option(const OptionInfo& option) {
  std::string text;
  for (const std::string& name : option.names) {
    const bool value = !option.placeholder.empty();
    const bool is_long = name.rfind("--", 0) == 0;
    text += " \\\n      '" + name + (value ? is_long ? "=" : "+" : "") + "[" + zsh_text(option.help) + "]" +
            (value ? ":" + zsh_text(option.placeholder) + ":" + zsh_action(option) : "") + "'";
  }
  return text;
}

std::string zsh_function_name(const CommandInfo& command) {
  return "_" + replace_all(command.path, " ", "_");
}

std::string zsh_command(const CommandInfo& command) {
  std::string text = zsh_function_name(command) + "() {\n";
  std::string options;
  for (const OptionInfo& option : command.options) {
    options += option.positional ? " \\\n      ':" + zsh_text(option.names.front()) + ":" + zsh_action(option) + "'" : zsh_option(option);
  }
  if (command.commands.empty()) {
    if (command.runs_program) options += " \\\n      '(-)1: :_command_names -e' '*:: :_normal'";
    return text + "  _arguments -s -S" + options + "\n}\n\n";
  }
  text += "  local context state state_descr line\n  typeset -A opt_args\n  local -a commands=(\n";
  for (const CommandInfo& inner : command.commands) text += "    '" + zsh_text(inner.name) + ":" + zsh_text(inner.summary) + "'\n";
  text += "  )\n  _arguments -C" + options + " \\\n      '1: :->command' '*:: :->rest'\n  case $state in\n";
  text += "    command) _describe command commands ;;\n    rest)\n      case $words[1] in\n";
  for (const CommandInfo& inner : command.commands) text += "        " + inner.name + ") " + zsh_function_name(inner) + " ;;\n";
  return text + "      esac ;;\n  esac\n}\n\n";
}

// ---- fish ----

std::string fish_quote(const std::string& text) {
  return "'" + replace_all(replace_all(text, "\\", "\\\\"), "'", "\\'") + "'";
}

/// When the words so far are this command's.
std::string fish_condition(const CommandInfo& command) {
  const std::size_t depth = static_cast<std::size_t>(std::count(command.path.begin(), command.path.end(), ' '));
  std::string text;
  std::string rest = command.path;
  for (std::size_t i = 0; i < depth; ++i) {
    rest = rest.substr(rest.find(' ') + 1);
    text += std::string(text.empty() ? "" : "; and ") + "__fish_seen_subcommand_from " + rest.substr(0, rest.find(' '));
  }
  if (command.commands.empty()) return text;
  const std::string inner = "not __fish_seen_subcommand_from " + join(names_of(command.commands), " ");
  return text.empty() ? inner : text + "; and " + inner;
}

std::string fish_option(const std::string& head, const OptionInfo& option) {
  const std::vector<std::string> choices = choices_of(option.placeholder);
  std::string text = head;
  if (!option.positional) {
    for (const std::string& name : option.names) text += name.rfind("--", 0) == 0 ? " -l " + name.substr(2) : " -s " + name.substr(1);
  }
  if (takes_file(option)) {
    text += option.positional ? " -F" : " -r -F";
  } else if (!option.placeholder.empty()) {
    text += option.positional ? " -f" : " -x";
    if (!choices.empty()) text += " -a " + fish_quote(join(choices, " "));
  }
  return text + " -d " + fish_quote(option.help) + "\n";
}

std::string fish_command(const CommandInfo& command) {
  const std::string head = "complete -c mpklink -n " + fish_quote(fish_condition(command));
  std::string text;
  for (const CommandInfo& inner : command.commands) text += head + " -f -a " + inner.name + " -d " + fish_quote(inner.summary) + "\n";
  for (const OptionInfo& option : command.options) text += fish_option(head, option);
  if (command.runs_program) text += head + " -x -a '(__fish_complete_subcommand --fcs-skip=2)'\n";
  return text;
}

}  // namespace

std::string bash_completion(const CommandInfo& tool) {
  std::vector<const CommandInfo*> commands;
  flatten(tool, &commands);
  std::string text = std::string(kHead) +
                     "\n# For the command $path: its options, arguments, whether it runs a program; values, and success, when the option $1 takes one.\n"
                     "_mpklink_words() {\n  options=''; arguments=''; program=''\n  case $path in\n";
  for (const CommandInfo* command : commands) text += bash_command(*command);
  return text + "    *) return 1 ;;\n  esac\n}\n" + kBashTail;
}

std::string zsh_completion(const CommandInfo& tool) {
  std::vector<const CommandInfo*> commands;
  flatten(tool, &commands);
  std::string text = std::string("#compdef mpklink\n") + kHead + "\n";
  for (const CommandInfo* command : commands) text += zsh_command(*command);
  return text + "if [ \"$funcstack[1]\" = _mpklink ]; then _mpklink \"$@\"; else compdef _mpklink mpklink; fi\n";
}

std::string fish_completion(const CommandInfo& tool) {
  std::vector<const CommandInfo*> commands;
  flatten(tool, &commands);
  std::string text = std::string(kHead) + "complete -c mpklink -f\n";
  for (const CommandInfo* command : commands) text += fish_command(*command);
  return text;
}

}  // namespace mpklink
