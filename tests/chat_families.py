"""Chat templates of the shape each family publishes, reduced to what decides where turns begin and end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sra_data.corpus.tokenization import SideTokenizer
from tests.tokenizer_zoo import train_byte_level


@dataclass(frozen=True)
class Family:
    """One of them.

    Attributes:
        name: as people call it.
        template: Jinja.
        specials: tokens it writes; the end of sequence and the beginning among them where it writes those.
        bos, eos: the tokenizer's own.
        begin: what stands before the first turn of a text, as it writes it.
        end: what ends an assistant turn, as a student has to learn it.
        end_of_sequence: what stands behind the last turn of a text, and is no label; "added" where the project adds it.
    """

    name: str
    template: str
    specials: tuple[str, ...]
    bos: str | None
    eos: str
    begin: str
    end: str
    end_of_sequence: str = ""


LOOP = "{% for m in messages %}"
IM = ("<|im_start|>", "<|im_end|>")
TURN = ("<start_of_turn>", "<end_of_turn>")
HEADER = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
COMMAND = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
ROLES = ("<|user|>", "<|assistant|>")

FAMILIES = (
    Family(
        "ChatML (Qwen, Yi, SmolLM)",
        "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}"
        + LOOP
        + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}",
        IM,
        None,
        "<|endoftext|>",
        "",
        "<|im_end|>",
    ),
    Family(
        "Llama 2",
        LOOP + "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
        (),
        "<s>",
        "</s>",
        "<s>",
        " </s>",
    ),
    Family(
        "Llama 3",
        "{{ bos_token }}" + LOOP + "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
        "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}",
        HEADER,
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|begin_of_text|>",
        "<|eot_id|>",
    ),
    Family(
        "Mistral",
        "{{ bos_token }}" + LOOP + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        ("[INST]", "[/INST]"),
        "<s>",
        "</s>",
        "<s>",
        "</s>",
    ),
    Family(
        "Gemma",
        "{{ bos_token }}" + LOOP + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
        "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}",
        TURN,
        "<bos>",
        "<eos>",
        "<bos>",
        "<end_of_turn>",
    ),
    Family(
        "Phi 3",
        LOOP + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}{{ eos_token }}",
        (*ROLES, "<|end|>"),
        None,
        "<|endoftext|>",
        "",
        "<|end|>",
        "<|endoftext|>",
    ),
    Family(
        "Zephyr",
        LOOP + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}",
        (),
        "<s>",
        "</s>",
        "",
        "</s>",
    ),
    Family(
        "Vicuna",
        "{{ bos_token }}" + LOOP + "{% if m.role == 'user' %}{{ 'USER: ' + m.content + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}",
        (),
        "<s>",
        "</s>",
        "<s>",
        "</s>",
    ),
    Family(
        "DeepSeek",
        "{{ bos_token }}" + LOOP + "{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n\n' }}"
        "{% else %}{{ 'Assistant: ' + m.content + eos_token }}{% endif %}{% endfor %}",
        (),
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
    ),
    Family(
        "Command R",
        "{{ bos_token }}"
        + LOOP
        + "{{ '<|START_OF_TURN_TOKEN|>' + ('<|CHATBOT_TOKEN|>' if m.role == 'assistant' else '<|USER_TOKEN|>') }}"
        "{{ m.content | trim + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}",
        COMMAND,
        "<BOS_TOKEN>",
        "<EOS_TOKEN>",
        "<BOS_TOKEN>",
        "<|END_OF_TURN_TOKEN|>",
    ),
    Family(
        "Granite",
        LOOP + "{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}{% endfor %}",
        ("<|start_of_role|>", "<|end_of_role|>"),
        None,
        "<|end_of_text|>",
        "",
        "<|end_of_text|>",
    ),
    Family(
        "OLMo, Tülu",
        "{{ bos_token }}" + LOOP + "{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + '\n' }}"
        "{% else %}{{ '<|assistant|>\n' + m.content + eos_token }}{% if not loop.last %}{{ '\n' }}{% endif %}"
        "{% endif %}{% endfor %}",
        (),
        "<|bos|>",
        "<|endoftext|>",
        "<|bos|>",
        "<|endoftext|>",
    ),
    Family(
        "Falcon instruct",
        LOOP + "{{ ('User: ' if m.role == 'user' else 'Assistant: ') + m.content }}"
        "{% if not loop.last %}{{ '\n\n' }}{% endif %}{% endfor %}",
        (),
        None,
        "<|endoftext|>",
        "",
        "",
        "added",
    ),
)


def tokenizer_of(family: Family, *, knows_its_tokens: bool = True) -> Any:
    """One token a byte, and the family's special tokens; or a tokenizer to which they are text, with "</s>" alone."""
    tokenizer = train_byte_level()
    tokenizer.chat_template = family.template
    if knows_its_tokens:
        tokenizer.add_special_tokens({"eos_token": family.eos, "additional_special_tokens": list(family.specials)})
        if family.bos is not None:
            tokenizer.add_special_tokens({"bos_token": family.bos})
    else:  # as when a template was copied from another model
        words = {"eos_token": family.eos, "bos_token": family.bos or ""}
        for name, text in words.items():
            tokenizer.chat_template = tokenizer.chat_template.replace(name, repr(text))
    return tokenizer


def side_of(family: Family, **options: bool) -> SideTokenizer:
    """The same as a side."""
    return SideTokenizer(tokenizer_of(family, **options), family.name)
