"""From what a user gives to token ids: an adapter's template, special tokens, truncation and windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Formatter

from tokenizers import Tokenizer

from runtime.errors import PackageError

Text = str | Mapping[str, object]  # for a template with several placeholders: a value for each, by name
Prompt = Text | Sequence[Mapping[str, str]]  # or messages {"role", "content"}


def check_template(template: object) -> list[str]:
    """Problems of an adapter's template: it is "chat", or a format string with placeholders such as "{prompt}"."""
    if template == "chat":
        return []
    if not isinstance(template, str):
        return [f"template is {template!r}, but must be text"]
    try:
        fields = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        return [f"template {template!r}: {error}; write {{{{ and }}}} for braces that are no placeholder"]
    if not fields or any(not name or spec or conversion for _, name, spec, conversion in fields):
        return [f"template {template!r} must have placeholders that are plain names, such as {{text}}"]
    return []


def check_messages(messages: Sequence[Mapping[str, str]], adapter: str | None, template: str) -> None:
    """Raises PackageError with everything that keeps messages from going into the chat template.

    Args:
        messages: what was given in the place of a text.
        adapter, template: the adapter's template must be "chat"; without an adapter (None) any base takes messages.
    """
    problems = []
    if adapter is not None and template != "chat":
        problems.append(f"adapter '{adapter}' has the template {template!r}, which takes a text and no messages")
    if not isinstance(messages, list | tuple) or not messages:
        problems.append(f"a prompt is a text, a dict of texts or a list of messages, but is {messages!r}")
    else:
        for number, message in enumerate(messages):
            if not isinstance(message, Mapping) or not all(
                isinstance(message.get(k), str) for k in ("role", "content")
            ):
                problems.append(f"message {number} is {message!r}, but must have the texts role and content")
    if problems:
        raise PackageError("; ".join(problems))


def fill(template: str, value: Text) -> str:
    """Puts `value` in the place of the template's placeholders; braces in values stay as they are.

    Args:
        template: format string, see `check_template`.
        value: a text where there is one placeholder, whatever its name; else a value for each placeholder by name.

    Raises:
        PackageError: a placeholder without a value, or a single text for several placeholders.

    >>> fill("{{}} Text: {text}", "a {b}")
    '{} Text: a {b}'
    >>> fill("{language}: {question}", {"language": "C", "question": "What is {0}?"})
    'C: What is {0}?'
    """
    parts = list(Formatter().parse(template))
    names = list(dict.fromkeys(name for _, name, _, _ in parts if name))
    if isinstance(value, str):
        if len(names) > 1:
            raise PackageError(f"template {template!r} takes {', '.join(names)}; give a value for each, by name")
        value = dict.fromkeys(names, value)
    if missing := [name for name in names if name not in value]:
        raise PackageError(
            f"template {template!r} needs {', '.join(missing)}; given: {', '.join(map(str, value)) or 'nothing'}"
        )
    return "".join(literal + (str(value[name]) if name else "") for literal, name, _, _ in parts)


def encode_windows(tokenizer: Tokenizer, text: str, max_length: int | None, stride: int | None) -> list[list[int]]:
    """Token ids of a text with its special tokens, in one or several windows.

    Args:
        tokenizer: as it was saved with the package.
        text: the filled template.
        max_length: most tokens of a window, special tokens included; None does not cut.
        stride: tokens from one window's start to the next; None keeps the first window only.

    Raises:
        PackageError: the text gives no token, or `max_length` leaves no room beside the special tokens.
    """
    encoding = tokenizer.encode(text, add_special_tokens=False)
    room = len(encoding.ids) if max_length is None else max_length - tokenizer.num_special_tokens_to_add(False)
    if max_length is not None and (room < 1 or (stride or 1) > room):
        raise PackageError(
            f"max_length={max_length} leaves room for {room} tokens beside the special ones; window_stride is {stride}"
        )
    if len(encoding.ids) > room:
        encoding.truncate(room, stride=room - stride if stride else 0)
    windows = [encoding, *(encoding.overflowing if stride else [])]
    ids = [tokenizer.post_process(window, None, True).ids for window in windows]
    if not ids[0]:
        raise PackageError(f"the tokenizer makes no token of the text {text[:40]!r}")
    return ids
