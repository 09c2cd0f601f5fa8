"""A tiny decoder with a chat template that has learned some conversations by heart.

It is a Llama of two layers. Its tokens are made of bytes (BPE), so it reads and writes any language.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch.nn import functional

Messages = list[dict[str, str]]

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SPECIAL = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>"]
_TOKENS = 2000
_CONTEXT = 512
_BATCH = 16


def train_writer(folder: Path, chats: Sequence[tuple[Messages, str]], *, seed: int = 0, steps: int = 220) -> Path:
    """Save a LlamaForCausalLM.

    Args:
        folder: where to.
        chats: conversations, and the answer to each.
        seed: of the weights and the order.
        steps: of 16 conversations.
    """
    tokenizer = _tokenizer([text for chat, answer in chats for text in (*(m["content"] for m in chat), answer)])
    examples = [_encode(tokenizer, *chat) for chat in chats]
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=_CONTEXT,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for so little, others only wait
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    draw = random.Random(seed)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(model, draw.sample(examples, min(_BATCH, len(examples)))).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    torch.set_num_threads(threads)
    transformers.utils.logging.disable_progress_bar()
    model.generation_config.max_new_tokens = 100
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _loss(model: torch.nn.Module, examples: list[tuple[list[int], int]]) -> torch.Tensor:
    """Of the answers' tokens; those of the prompts are given."""
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in examples])  # [batch, longest]
    places = torch.arange(longest)
    answers = torch.stack([(places >= begin) & (places < len(ids)) for ids, begin in examples])
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    wanted = answers[:, 1:]  # the head is run where it counts only
    return functional.cross_entropy(model.lm_head(hidden[wanted]), ids[:, 1:][wanted])


def _encode(tokenizer: transformers.PreTrainedTokenizerFast, messages: Messages, answer: str) -> tuple[list[int], int]:
    """Token ids of a conversation with its answer, and where that begins."""
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)]
    return [*ids[0], *ids[1], tokenizer.eos_token_id], len(ids[0])


def _tokenizer(texts: Sequence[str]) -> transformers.PreTrainedTokenizerFast:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=_TOKENS,
            special_tokens=_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=_CONTEXT
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
