"""What the jobs on one model and one data set open first, checked: the model, its blocks, the sequences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from forebear.artifacts.manifests import point_digests
from forebear.data.batches import number_of_positions
from forebear.data.chat import Chat
from forebear.data.sequences import Example
from forebear.data.token_files import open_sequences
from forebear.gradients.blocks import Block, summary, tracked_blocks, tracked_share
from forebear.gradients.gate import check_model
from forebear.models.checkpoints import check_context, load_model, load_tokenizer
from forebear.models.heads import classes_by_label


@dataclass(frozen=True)
class Point:
    """A model and the sequences that it is looked at with."""

    model: PreTrainedModel
    blocks: list[Block]
    examples: Sequence[Example]
    digests: dict[str, str]  # of model and data: what artifacts made here carry
    tracked_share: float  # of the parameters in the layers

    def attributes(self, documents: Sequence[int]) -> dict[str, str | int | float]:
        """What factors fitted here on some documents say of themselves."""
        return {
            "sequences": len(documents),
            "positions": number_of_positions(self.examples, documents),
            "tracked_share": self.tracked_share,
            **self.digests,
        }


def open_point(
    manifest: str,
    records: str,
    max_length: int,
    gpus: int,
    split_heads: bool = False,
    end: bool = True,
    precision: str = "float32",
    trust_remote_code: bool = False,
    chat: Mapping | None = None,
) -> Point:
    """Open the checkpoint beside `manifest` and encode a JSONL file with its tokenizer.

    Args:
        end: whether the end-of-sequence token is a target; not for queries.
        precision: of the model's passes; what is computed from them is in float32.
        trust_remote_code: the study's key: run Python code that the checkpoint brings.
        chat: the study's section: how records with `messages` are read.
    """
    directory = Path(manifest).parent
    digests = point_digests(manifest, records)
    model = load_model(directory, gpus, precision, trust_remote_code)
    check_context(model, max_length)
    classes = classes_by_label(model)
    tokenizer = load_tokenizer(directory, trust_remote_code)
    made_of = (max_length, end, classes, Chat(**chat or {}), digests["data_digest"])
    examples = open_sequences(records, tokenizer, *made_of)
    blocks = tracked_blocks(model, split_heads)
    print(summary(model, blocks))
    check_model(model, blocks, max_length)
    return Point(model, blocks, examples, digests, tracked_share(model, blocks))
