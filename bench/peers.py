"""How others train: one padded row per question and logits at every token. Written for the benches, same weights.

Their rows hold the very ids and labels that ours hold, tokenized and with pixels prepared before any clock starts. What
they gain by that is small; what we do to read and tokenize is inside of our time.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from measure import Clock, Spent
from medmvl.bundle import Bundle
from medmvl.core.schema import Sample

IGNORE = -100
LEARNING_RATE = 1e-5
CLIP = 1.0


@dataclass(frozen=True)
class Line:
    """A sample as peers see it: ids and labels [T], pixels of its medium or None."""

    ids: Tensor
    labels: Tensor
    pixels: Tensor | None


def lines(bundle: Bundle, samples: Iterable[Sample]) -> list[Line]:
    """Return samples as peers see them."""
    found = []
    pool: dict[str, Any] = {}
    for sample in samples:
        encoded = bundle.processor.encode(sample, pool=pool)
        (branch,) = encoded.branches
        pixels = [torch.from_numpy(medium.view.pixels) for medium in encoded.media]
        ids, labels = (torch.from_numpy(x.astype("int64")) for x in (branch.ids, branch.labels))
        found.append(Line(ids, labels, pixels[0] if pixels else None))
    return found


def padded(rows: Sequence[Line], pad: int) -> dict[str, Tensor]:
    """Return ids, labels and mask [B, T] of rows, padded on the right to the longest, and their pixels [B, ...]."""
    batch = {
        "input_ids": nn.utils.rnn.pad_sequence([row.ids for row in rows], True, pad),
        "labels": nn.utils.rnn.pad_sequence([row.labels for row in rows], True, IGNORE),
        "attention_mask": nn.utils.rnn.pad_sequence([torch.ones_like(row.ids) for row in rows], True, 0),
    }
    if rows[0].pixels is not None:
        batch["pixel_values"] = torch.stack([row.pixels for row in rows])
    return batch


def _optimizer(model: nn.Module) -> torch.optim.AdamW:
    learning = [one for one in model.parameters() if one.requires_grad]
    return torch.optim.AdamW(learning, lr=LEARNING_RATE, betas=(0.9, 0.999), weight_decay=0.0, fused=True)


class Plain:
    """A LLaVA-style loop: every row encodes its own image, and gets logits at each of its tokens.

    Args:
        bundle: whose weights are copied, learning or not, with the LLM's own SDPA attention in place of ours.
        micro: rows of a batch; a step accumulates as many as it needs.
    """

    def __init__(self, bundle: Bundle, micro: int) -> None:
        self.micro, self.pad = micro, bundle.processor.tokenizer.pad_token_id
        self.model = copy.deepcopy(bundle.model).train()
        self.model.llm.set_attn_implementation("sdpa")
        self.places = list(bundle.processor.placeholder_ids.values())
        self.optimizer = _optimizer(self.model)

    def step(self, rows: Sequence[Line]) -> Spent:
        """Do an optimizer step over all rows."""
        clock = Clock()
        self.backward(rows)
        taken = clock()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Spent(taken, clock())

    def backward(self, rows: Sequence[Line]) -> float:
        """Add up the gradients of all rows; return their loss, the mean over all learned tokens."""
        count = sum(int((row.labels[1:] != IGNORE).sum()) for row in rows)
        total = 0.0
        for start in range(0, len(rows), self.micro):
            loss = self._loss(padded(rows[start : start + self.micro], self.pad)) / count
            loss.backward()
            total += float(loss.detach())
        return total

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        llm = self.model.llm
        embeddings = llm.get_input_embeddings()(batch["input_ids"])
        if "pixel_values" in batch:
            (tower,) = self.model.towers.values()
            features = tower(batch["pixel_values"])
            shown = torch.isin(batch["input_ids"], torch.tensor(self.places))
            embeddings = embeddings.masked_scatter(shown[..., None], features)
        logits = llm(inputs_embeds=embeddings, attention_mask=batch["attention_mask"], use_cache=False).logits
        wanted, found = batch["labels"][:, 1:].flatten(), logits[:, :-1].flatten(0, 1)
        return F.cross_entropy(found.float(), wanted, ignore_index=IGNORE, reduction="sum")

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and gradient of every parameter that has one, by our names."""
        yield from ((name, one.grad) for name, one in self.model.named_parameters() if one.grad is not None)


class Transformers:
    """transformers' LlavaForConditionalGeneration under its Trainer; text alone: the LLM under the Trainer.

    Args:
        bundle, micro: see `Plain`.
        folder: the Trainer's output folder.
    """

    def __init__(self, bundle: Bundle, micro: int, folder: str) -> None:
        self.micro, self.folder, self.pad = micro, folder, bundle.processor.tokenizer.pad_token_id
        self.names: dict[str, str] = {}
        self.model = self._model(bundle).train()
        self.optimizer = _optimizer(self.model)
        self.loss = 0.0

    def step(self, rows: Sequence[Line], watch: Any = None, clip: float = CLIP) -> Spent:
        """Let the Trainer do an optimizer step over all rows; `watch` is called before the gradients are cleared."""
        from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

        clock, rows_took, update_took = Clock(), [], []

        class Timed(Trainer):
            """Tells what each batch takes."""

            def training_step(self, *args: Any, **keywords: Any) -> Tensor:
                clock()
                loss = super().training_step(*args, **keywords)
                rows_took.append(clock())
                return loss

        class Watch(TrainerCallback):
            """Tells what follows the last batch."""

            def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
                update_took.append(clock())
                if watch is not None:
                    watch()
                clock()

            def on_optimizer_step(self, *_: Any, **__: Any) -> None:
                update_took.append(clock())

        settings = TrainingArguments(
            self.folder,
            per_device_train_batch_size=self.micro,
            gradient_accumulation_steps=-(-len(rows) // self.micro),
            max_steps=1,
            max_grad_norm=clip,
            lr_scheduler_type="constant",
            learning_rate=LEARNING_RATE,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
            dataloader_num_workers=0,
        )
        trainer = Timed(
            self.model,
            settings,
            train_dataset=list(rows),
            data_collator=lambda found: self._collate(found),
            optimizers=(self.optimizer, torch.optim.lr_scheduler.ConstantLR(self.optimizer, 1.0, 0)),
            callbacks=[Watch()],
        )
        trainer.remove_callback(PrinterCallback)
        self.loss = trainer.train().training_loss
        return Spent(_summed(rows_took), _summed(update_took))

    def _collate(self, rows: Sequence[Line]) -> dict[str, Tensor]:
        batch = padded(rows, self.pad)
        pixels = batch.get("pixel_values")
        if pixels is not None and pixels.ndim == 5:  # a volume goes in as its slices, grey as three channels
            batch["pixel_values"] = pixels.transpose(1, 2).flatten(0, 1).expand(-1, 3, -1, -1)
        return batch

    def _model(self, bundle: Bundle) -> nn.Module:
        from transformers import LlavaConfig, LlavaForConditionalGeneration

        llm = copy.deepcopy(bundle.model.llm)
        llm.set_attn_implementation("sdpa")
        if not bundle.model.towers:
            self.names = {name: f"llm.{name}" for name, _ in llm.named_parameters()}
            return llm
        ((name, tower),) = bundle.model.towers.items()
        tower = copy.deepcopy(tower)
        vision = getattr(tower.encoder, "slice_encoder", tower.encoder).model
        config = LlavaConfig(
            vision_config=vision.config,
            text_config=llm.config,
            image_token_index=bundle.processor.placeholder_ids[name],
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            projector_hidden_act="gelu",
            tie_word_embeddings=True,
        )
        model = LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa")
        model.model.vision_tower, model.model.language_model = vision, llm.model
        model.lm_head = llm.lm_head
        if name == "volume":
            model.model.multi_modal_projector = _Projector(tower.connector, tower.encoder.spec.size[0])
        else:
            model.model.multi_modal_projector = tower.connector
        ours = {id(one): known for known, one in _named(bundle, tower, llm)}
        self.names = {known: ours[id(one)] for known, one in model.named_parameters()}
        return model

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Yield name and gradient of every parameter that has one, by our names."""
        for name, one in self.model.named_parameters():
            if one.grad is not None:
                yield self.names[name], one.grad


def _summed(times: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(one[0] for one in times), sum(one[1] for one in times)


class _Projector(nn.Module):
    """Our connector in the place of the projector: the tokens of all slices of a volume become its own."""

    def __init__(self, connector: nn.Module, slices: int) -> None:
        super().__init__()
        self.connector, self.slices = connector, slices

    def forward(self, features: Tensor) -> Tensor:
        return self.connector(features.reshape(-1, self.slices * features.shape[1], features.shape[2]))


def _named(bundle: Bundle, tower: nn.Module, llm: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield our names with the parameters of the copies."""
    ((name, _),) = bundle.model.towers.items()
    yield from ((f"towers.{name}.{known}", one) for known, one in tower.named_parameters())
    yield from ((f"llm.{known}", one) for known, one in llm.named_parameters())
