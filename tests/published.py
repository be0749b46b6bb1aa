"""Tiny checkpoints and data sets as publishers save them."""

import json
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertModel, PreTrainedTokenizerFast

from copies import ROOT
from loopback_hub import Repository

SENTENCES = ["The capital of Cuba is Havana .", "Which city ? Answer : Havana", "Rome is the capital of Italy ."]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """As GPT-2's, but without any special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def tiny_checkpoint(
    folder: Path, model_type: str = "bloom", seed: int = 0, pickled: bool = False, shard_size: str = "1GB"
) -> Path:
    """A model of a few thousand parameters, as a publisher would have saved it."""
    tokenizer = byte_level_tokenizer()
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model(model_type, **sizes, vocab_size=len(tokenizer))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder, max_shard_size=shard_size)
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def tiny_encoder(folder: Path) -> Path:
    """A sentence encoder of the family of all-MiniLM-L6-v2."""
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


WIKIDATA = {"predicate": "http://www.wikidata.org/prop/direct/", "subject": "http://www.wikidata.org/entity/"}


def triple(relation: str, subject: str, obj: str, sentence: int) -> dict:
    """As T-REx writes it."""
    entity = WIKIDATA["subject"]
    return {
        "predicate": {"uri": WIKIDATA["predicate"] + relation, "surfaceform": None},
        "subject": {"uri": entity + subject, "surfaceform": subject},
        "object": {"uri": entity + obj, "surfaceform": obj},
        "sentence_id": sentence,
        "annotator": "NoSubject-Triple-aligner",
    }


def lama_and_trex(folder: Path) -> Path:
    """Both data sets in their published formats: where three people were born."""
    lama, trex = folder / "LAMA/TREx", folder / "TREX"
    lama.mkdir(parents=True)
    trex.mkdir()
    people = {"Q1": ("Ada", "Q100", "London"), "Q2": ("Bob", "Q200", "Rome"), "Q3": ("Cyd", "Q100", "London")}
    lines = [
        {"uuid": str(k), "predicate_id": "P19", "sub_uri": s, "sub_label": name, "obj_uri": o, "obj_label": city}
        for k, (s, (name, o, city)) in enumerate(people.items())
    ]
    (lama / "P19.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (lama / "P99.jsonl").write_text(json.dumps({**lines[0], "predicate_id": "P99"}) + "\n")  # without a template
    (lama.parent / "relations.jsonl").write_text('{"relation": "P19", "template": "[X] was born in [Y] ."}\n')
    first, second = "Ada was born in London. ", "Nothing is said here."
    abstracts = [
        {
            "docid": "http://www.wikidata.org/entity/Q1",
            "text": first + second,
            "sentences_boundaries": [[0, len(first) - 1], [len(first), len(first) + len(second)]],
            "triples": [triple("P19", "Q1", "Q100", 0), triple("P21", "Q1", "Q7", 0), triple("P21", "Q1", "Q7", 1)],
        },
        {
            "docid": "http://www.wikidata.org/entity/Q2",
            "text": "Bob comes from Rome. Cyd is a Londoner.",
            "sentences_boundaries": [[0, 20], [21, 39]],
            "triples": [triple("P19", "Q2", "Q200", 0), triple("P19", "Q3", "Q100", 1)],
        },
    ]
    (trex / "re-nlg_0-10000.json").write_text(json.dumps(abstracts))
    return folder


def published_data(folder: Path) -> Path:
    """What the studies bloom and dolly look for in data/, in the formats in which it is published."""

    def write(name: str, lines: list[dict]) -> None:
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    lama_and_trex(folder)
    write("roots_en_wikipedia.jsonl", [{"text": text, "meta": "{}"} for text in SENTENCES])
    write("xP3_en.jsonl", [{"inputs": "Which city ?", "targets": "Rome"}] * 3)
    write("pile.jsonl", [{"text": text, "meta": {"pile_set_name": "Wikipedia (en)"}} for text in SENTENCES])
    write("dolly-15k.jsonl", [{"instruction": "Name a city", "context": "", "response": "Rome"}] * 3)
    write("dolly-queries.jsonl", [{"instruction": "What is the capital of Cuba ?", "response": "Havana"}])
    return folder


MAKERS = {
    "bigscience/bloom-560m": lambda folder: tiny_checkpoint(folder, shard_size="8KB"),
    "bigscience/bloomz-560m": lambda folder: tiny_checkpoint(folder, seed=1),
    "EleutherAI/pythia-2.8b": lambda folder: tiny_checkpoint(folder, "gpt_neox"),
    "databricks/dolly-v2-3b": lambda folder: tiny_checkpoint(folder, "gpt_neox", seed=1, pickled=True),
    "sentence-transformers/all-MiniLM-L6-v2": tiny_encoder,
}


def published_models(study: str, folder: Path) -> dict[str, Repository]:
    """Tiny models under the names and revisions that a study of studies/ has."""
    config = yaml.safe_load((ROOT / f"studies/{study}.yaml").read_text())
    return {
        name: Repository(MAKERS[name](folder / name), commit=revision) for name, revision in _pinned(config).items()
    }


def _pinned(part: object) -> dict[str, str]:
    """Name on the hub → revision."""
    if isinstance(part, dict) and "hub" in part:
        return {part["hub"]: part["revision"]}
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else []
    return {name: revision for inner in parts for name, revision in _pinned(inner).items()}


def own_code_checkpoint(folder: Path) -> Path:
    """A model whose config and class are Python files beside it, as on the hub."""
    tiny_checkpoint(folder, "opt")
    config = json.loads((folder / "config.json").read_text())
    places = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    config.update(model_type="own", architectures=["OwnForCausalLM"], auto_map=places)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "configuration_own.py").write_text(
        "from transformers import OPTConfig\n\n\nclass OwnConfig(OPTConfig):\n    model_type = 'own'\n"
    )
    (folder / "modeling_own.py").write_text(
        "from pathlib import Path\n\nfrom transformers import OPTForCausalLM\n\nfrom .configuration_own import OwnConfig\n\n"
        "Path('run.txt').touch()\n\n\nclass OwnForCausalLM(OPTForCausalLM):\n    config_class = OwnConfig\n"
    )
    return folder
