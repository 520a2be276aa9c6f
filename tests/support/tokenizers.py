"""Tiny tokenizers of the kinds that models have, and chat templates of the families; all trained in milliseconds."""

from collections.abc import Callable
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXTS = (
    "Which city is the capital of France? Paris is the capital of France.",
    "user assistant system tool model You are a short and kind guide. Why is that so?",
    "It rains in the north and the sun shines in the south. Good morning, good night.",
    "think a b c 0 1 2 3 4 5 6 7 8 9 . , ; : ! ? ( ) ' - | < > [ ] { } \" / _ # @ %",
)
SPECIALS = (
    "<unk>",
    "<s>",
    "</s>",
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|tool|>",
    "<|end|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<|begin|>",
    "<|stop|>",
)
PLAIN_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Added tokens that are not special, as in Qwen3."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _regex(pattern: str) -> Any:
    from tokenizers import Regex

    return Regex(pattern)


def _bytes(before: pre_tokenizers.PreTokenizer) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = before, decoders.ByteLevel()
    core.train_from_iterator(TEXTS, _bpe(pre_tokenizers.ByteLevel.alphabet()))
    return core


def _bpe(alphabet: list[str]) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=900, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )


def _letters() -> list[str]:
    return sorted({c for text in TEXTS for c in text} | {"\n", "\u2581"})


def _metaspace(prepend: Any, *, split: bool = True, fallback: bool = False) -> Tokenizer:
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=fallback, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=prepend, split=split)
    core.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme=prepend)
    extra = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    core.train_from_iterator([*TEXTS, *extra], _bpe(_letters()))
    if fallback:
        core.add_tokens(extra)
    return core


def _prepended() -> Tokenizer:
    """Llama 2's older form: a normalizer puts the space before every text between special tokens."""
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    core.train_from_iterator(TEXTS, _bpe(_letters()))
    return core


def _byte_fallback() -> Tokenizer:
    vocab = {token: number for number, token in enumerate((*SPECIALS, *(f"<0x{b:02X}>" for b in range(256))))}
    for letter in _letters():
        vocab.setdefault(letter, len(vocab))
    merges = [("a", "n"), ("i", "s"), ("\u2581", "i"), ("P", "a"), ("\u2581", "P"), ("t", "h"), ("\u2581", "th")]
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return core


def _unigram(prepend: Any, *, split: bool = True) -> Tokenizer:
    core = Tokenizer(models.Unigram())
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=prepend, split=split)
    core.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme=prepend)
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=list(SPECIALS),
        initial_alphabet=_letters(),
        unk_token="<unk>",
        show_progress=False,
    )
    core.train_from_iterator(TEXTS * 4, trainer)
    return core


def _wordpiece(*, lowercase: bool) -> Tokenizer:
    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    core.pre_tokenizer, core.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=list(SPECIALS), show_progress=False)
    core.train_from_iterator(TEXTS, trainer)
    return core


def _wordlevel() -> Tokenizer:
    core = Tokenizer(models.WordLevel(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=list(SPECIALS), show_progress=False))
    return core


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": lambda: _bytes(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "bytes, prefix space": lambda: _bytes(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "bytes, GPT-2's words": lambda: _bytes(_split(GPT2)),
    "bytes, Llama 3's words": lambda: _bytes(_split(LLAMA3)),
    "bytes, no words": lambda: _bytes(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "metaspace first": lambda: _metaspace("first"),
    "metaspace always": lambda: _metaspace("always"),
    "metaspace never": lambda: _metaspace("never"),
    "metaspace first, no words": lambda: _metaspace("first", split=False),
    "prepended": _prepended,
    "byte fallback": _byte_fallback,
    "unigram first": lambda: _unigram("first"),
    "unigram always": lambda: _unigram("always"),
    "unigram, no words": lambda: _unigram("first", split=False),
    "wordpiece": lambda: _wordpiece(lowercase=False),
    "wordpiece, lower case": lambda: _wordpiece(lowercase=True),
    "words": _wordlevel,
}

_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES: dict[str, str] = {
    "chatml": _CHATML,
    "llama 3": (
        "{{ '<s>' }}{% for m in messages %}"
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ '<s>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for m in messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
        "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + '</s>' }}"
        "{% elif m['role'] == 'system' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}{% endfor %}"
    ),
    "phi 3": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "qwen 3": (
        "{% for m in messages %}{% set text = m['content'] %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}{% set thought = m['reasoning_content'] or '' %}"
        "{% if loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{% endif %}"
        "{{ text + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "tools": (
        "{% if tools %}{{ '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{% for call in m['tool_calls'] or [] %}"
        "{{ '<tool_call>' + call['function']['name'] + call['function']['arguments'] | tojson + '</tool_call>' }}"
        "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "deepseek": (
        "{{ '<|begin|>' }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
        "{% elif m['role'] == 'user' %}{{ '<|user|>' + m['content'] }}"
        "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>' + m['content'] + '<|stop|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
    "plain text": (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    ),
}


@cache
def _core(kind: str) -> str:
    core = TOKENIZERS[kind]()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in PLAIN_TOKENS])
    return str(core.to_str())


def make_tokenizer(kind: str, template: str, eos: str = "</s>") -> Any:
    """A tokenizer of `TOKENIZERS` with a template of `TEMPLATES`, as transformers loads one."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_core(kind)),
        bos_token="<s>",
        eos_token=eos,
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=TEMPLATES[template],
    )
