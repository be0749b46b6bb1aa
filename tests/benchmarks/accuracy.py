"""What moves the accuracy of the default study: makes the tables of docs/accuracy.md.

    snakemake --cores 2 results/facts/evaluation.csv
    python tests/benchmarks/accuracy.py            # everything, about 40 minutes on one core
    python tests/benchmarks/accuracy.py halves     # one section

Scores and further chains are kept in a cache folder, so that an interrupted run goes on
where it was. The retrainings that the scores must predict are those of results/facts, all
with the seed 0; no chain used here is one of them.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from forebear.config.reading import read_config
from forebear.data.records import read_records
from forebear.data.sequences import encode
from forebear.estimators import ESTIMATORS
from forebear.evaluation.lds import BOOTSTRAP, rank_correlations, subset_predictions
from forebear.factors.eigenvalue_functions import Damping
from forebear.gradients.blocks import Block, tracked_blocks
from forebear.gradients.outer_products import formed
from forebear.ground_truth.bank import Bank, Retraining, draw_subsets
from forebear.ground_truth.files import read_bank, read_shards, read_subsets
from forebear.ground_truth.retrain import prepare_stage, retrain
from forebear.models.checkpoints import load_model, save_checkpoint
from forebear.models.losses import evaluate_losses
from forebear.models.training import Schedule, build_model, build_tokenizer, train
from forebear.queries.chain import DampedInverse, apply_chain
from forebear.queries.gradients import query_gradients
from forebear.scores.ensemble import ChainStage, FactorOptions, fit_inverse
from forebear.scores.files import read_scores
from forebear.scores.pairwise import Request, pairwise_scores
from forebear.scores.self_influence import self_influence

STAGES = ("pretraining", "finetuning")
PARTS_SEED = 1000  # draws the halves that chains are trained on: not those of the ground truth


@dataclass(frozen=True)
class Variant:
    """One way of scoring at one chain; the defaults are the study's multistage-ekfac."""

    blocks: str = "layers"
    own: float = 1e-3  # ρ of pretraining
    later: float = 1e-3  # ρ of fine-tuning
    alpha: float = 1e-5
    labels: int = 1  # drawn for each factor

    @property
    def key(self) -> str:
        return "-".join(f"{value:g}" if isinstance(value, float) else str(value) for value in vars(self).values())


BASE = Variant()


class Lab:
    """The finished study, and the chains and scores that are made beside it."""

    def __init__(self, results: Path, cache: Path):
        self.results, self.cache = results, cache
        self.study = read_config("config.yaml").studies["facts"]
        self.records = {name: read_records(results / f"data/{name}.jsonl") for name in (*STAGES, "queries")}
        self.tokenizer = build_tokenizer([record for stage in STAGES for record in self.records[stage]])
        self.examples = {
            name: encode(records, self.tokenizer, self.study.max_length, end=name != "queries")
            for name, records in self.records.items()
        }
        masks = read_subsets(results / "ground_truth/subsets.h5")["pretraining"]
        self.bank = Bank(masks, *read_bank(results / "ground_truth/bank.h5")).with_seed(0)

    def chain(self, seed: int, part: int | None = None) -> "Chain":
        """A chain with a seed, on all documents or on the row `part` of random halves."""
        if part is None and seed == 0:
            return Chain(self, "seed0", self.results / "models")
        name = f"seed{seed}" if part is None else f"seed{seed}-half{part}"
        folder = self.cache / "models" / name
        if not (folder / "finetuning/manifest.json").exists():
            mask = None if part is None else self.halves[part]
            schedules = [Schedule(**self.study.stage(name).training.model_dump()) for name in STAGES]
            stages = [
                prepare_stage(self.records[name], self.tokenizer, self.study.max_length, "language_modelling", schedule)
                for name, schedule in zip(STAGES, schedules, strict=True)
            ]
            began = time.perf_counter()
            models = retrain(build_model(self.study.model, self.tokenizer, seed), stages, [mask, None], seed)
            seconds = time.perf_counter() - began
            for stage, (model, _) in zip(STAGES, models, strict=True):
                save_checkpoint(folder / stage, model, self.tokenizer, cost={"seconds": seconds, "peak_bytes": 0})
        return Chain(self, name, folder)

    def member(self, place: int) -> "Chain":
        """The bank's retraining with another seed on subset `place`."""
        keys = read_shards(sorted((self.results / "ground_truth/shards").glob("*.h5")))
        return Chain(self, f"member{place}", self.results / "ground_truth/retrainings" / keys[Retraining(place, 1)])

    def study_scores(self, estimator: str) -> np.ndarray:
        model = "finetuning" if ESTIMATORS[estimator].at_last else "pretraining"
        own = estimator if not ESTIMATORS[estimator].uses_gradients else f"at_{model}"
        return read_scores(self.results / f"scores/pretraining/{own}.h5", estimator).matrix

    def checkpoints(self, seed: int = 0, part: int | None = None) -> dict[int, Path]:
        """Epoch → a chain's pretraining after it; it is trained again to get at them and at √v̂ of its end."""
        folder = self.cache / f"models/checkpoints{'' if part is None else f'-seed{seed}-half{part}'}"
        epochs = {epoch: folder / str(epoch) for epoch in (2, 5, 8, 11, 14, 17)}
        schedule = Schedule(**self.study.stage("pretraining").training.model_dump())
        mask = None if part is None else self.halves[part]
        per_epoch = -(-(len(self.examples["pretraining"]) if part is None else mask.sum()) // schedule.batch_size)
        model, steps = build_model(self.study.model, self.tokenizer, seed), 0

        def keep(optimizer, *_):
            nonlocal steps
            steps += 1
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            if steps in [epoch * per_epoch for epoch in epochs]:
                copy = build_model(self.study.model, self.tokenizer, 0)
                with torch.no_grad():
                    for ours, theirs in zip(copy.parameters(), parameters, strict=True):
                        ours.copy_(theirs)
                save_checkpoint(epochs[steps // per_epoch], copy, self.tokenizer)
            if steps == per_epoch * schedule.epochs:
                correction = 1 - optimizer.param_groups[0]["betas"][1] ** steps
                roots = [(optimizer.state[parameter]["exp_avg_sq"] / correction).sqrt() for parameter in parameters]
                names = [name for name, _ in model.named_parameters()]
                save_file(dict(zip(names, roots, strict=True)), folder / "adam.safetensors")

        if not (folder / "adam.safetensors").exists():
            handle = register_optimizer_step_post_hook(keep)
            try:
                train(model, self.examples["pretraining"], schedule, (seed, 0), mask)
            finally:
                handle.remove()
        return epochs

    @cached_property
    def halves(self) -> np.ndarray:
        """[32, N] random halves of the documents."""
        return draw_subsets({"pretraining": len(self.examples["pretraining"])}, 0.5, 32, PARTS_SEED)["pretraining"]


class Chain:
    """A trained chain, at which documents are scored."""

    def __init__(self, lab: Lab, name: str, folder: Path, pretraining: Path | None = None):
        self.lab, self.name = lab, name
        self.folders = {"pretraining": pretraining or folder / "pretraining", "finetuning": folder / "finetuning"}
        self._factors: dict[tuple[str, str, int], DampedInverse] = {}

    @cached_property
    def models(self) -> dict[str, torch.nn.Module]:
        return {name: load_model(folder) for name, folder in self.folders.items()}

    def at(self, epoch: int, checkpoints: dict[int, Path]) -> "Chain":
        """The same with the documents seen at an earlier checkpoint of pretraining."""
        folder = self.folders["finetuning"].parent
        return Chain(self.lab, f"{self.name}-epoch{epoch}", folder, checkpoints[epoch])

    def blocks(self, which: str) -> list[Block]:
        layers = tracked_blocks(self.models["pretraining"])
        output = self.models["pretraining"].get_output_embeddings()
        name = next(n for n, module in self.models["pretraining"].named_modules() if module is output)
        head = Block(name, name, "head", slice(0, output.out_features), tuple(output.weight.shape), False)
        return {
            "layers": layers,
            "mlp": [b for b in layers if b.kind == "mlp"],
            "attention": [b for b in layers if b.kind == "attention"],
            "first": [b for b in layers if "layers/0" in b.name],
            "last": [b for b in layers if "layers/1" in b.name],
            "head": [head],
            "layers+head": [*layers, head],
        }[which]

    def inverse(self, stage: str, variant: Variant) -> DampedInverse:
        key = (stage, variant.blocks, variant.labels)
        if key not in self._factors:
            of = ChainStage(self.models[stage], self.lab.examples[stage], Damping(relative=0.0))
            options = FactorOptions(0, self.lab.study.batch_tokens, variant.labels)
            self._factors[key] = fit_inverse(of, self.blocks(variant.blocks), options)
        if stage == "pretraining":
            return replace(self._factors[key], damping=Damping(relative=variant.own))
        later = {"damping": Damping(relative=variant.later), "pull": variant.alpha, "scale": variant.alpha}
        return replace(self._factors[key], **later)

    def _kept(self, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        path = self.lab.cache / "scores" / self.name / f"{name}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            value = compute()
            np.save(path.with_suffix(".partial.npy"), value)
            path.with_suffix(".partial.npy").rename(path)
        return np.load(path)

    def scores(self, variant: Variant = BASE) -> np.ndarray:
        """[N, Q] of the variant, without self-influence."""
        return self._kept(variant.key, lambda: self._scores(variant))

    def self_influence(self, variant: Variant = BASE) -> np.ndarray:
        """gᵀ H̃⁻¹ g of every document, [N]."""
        of = replace(variant, later=1.0, alpha=1.0)  # they have no part in it
        return self._kept("self-" + of.key, lambda: self._self_influence(of))

    def relatif(self, variant: Variant = BASE, power: float = 0.5) -> np.ndarray:
        return self.scores(variant) / self.self_influence(variant)[:, None] ** power

    def _self_influence(self, variant: Variant) -> np.ndarray:
        arguments = self.blocks(variant.blocks), self.lab.examples["pretraining"]
        inverse = self.inverse("pretraining", variant)
        return self_influence(self.models["pretraining"], *arguments, inverse, self.lab.study.batch_tokens).numpy()

    def _later(self, variant: Variant) -> tuple[list[Block], dict[str, torch.Tensor]]:
        """The blocks, and the queries behind fine-tuning's inverse."""
        blocks, examples = self.blocks(variant.blocks), self.lab.examples["queries"]
        gradients, _ = query_gradients(self.models["finetuning"], blocks, examples, self.lab.study.batch_tokens)
        return blocks, apply_chain(gradients, blocks, [self.inverse("finetuning", variant)])

    def _scores(self, variant: Variant) -> np.ndarray:
        blocks, later = self._later(variant)
        return self._against(blocks, apply_chain(later, blocks, [self.inverse("pretraining", variant)]))

    def _against(self, blocks: list[Block], columns: dict[str, torch.Tensor]) -> np.ndarray:
        """The documents' gradients against preconditioned queries, [N, Q]."""
        model, documents = self.models["pretraining"], self.lab.examples["pretraining"]
        scores = np.empty((len(documents), len(self.lab.examples["queries"])), np.float32)

        def write(_, places, values):
            scores[places] = values

        request = Request("columns", frozenset(b.name for b in blocks))
        budget = self.lab.study.batch_tokens
        pairwise_scores(model, blocks, documents, {"columns": columns}, {"scores": request}, budget, write)
        return scores

    def losses(self) -> np.ndarray:
        """[Q] of the queries at the last model."""
        return evaluate_losses(self.models["finetuning"], self.lab.examples["queries"]).numpy()

    def adam_scores(self) -> np.ndarray:
        def compute() -> np.ndarray:
            self.lab.checkpoints()
            roots = load_file(self.lab.cache / "models/checkpoints/adam.safetensors")
            blocks, later = self._later(BASE)
            for block in blocks:
                name = block.module.replace("/", ".")
                root = torch.cat([roots[f"{name}.weight"], roots[f"{name}.bias"][:, None]], 1)
                later[block.name] /= root + 1e-8
            return self._against(blocks, later)

        return self._kept("adam", compute)

    def gram(self) -> np.ndarray:
        """G W Gᵀ of all documents with EK-FAC's inverse W of pretraining, [N, N]; a block at a time."""

        def compute() -> np.ndarray:
            model, documents = self.models["pretraining"], self.lab.examples["pretraining"]
            total, inverse = torch.zeros(len(documents), len(documents)), self.inverse("pretraining", BASE)
            for block in self.blocks("layers"):
                gradients, _ = query_gradients(model, [block], documents, self.lab.study.batch_tokens)
                columns = apply_chain(gradients, [block], [inverse])[block.name]
                total += columns.flatten(1) @ formed(gradients[block.name]).flatten(1).T
            return total.double().numpy()

        return self._kept("gram", compute)


# How an ensemble's members are combined: [C, N, Q] → [N, Q].


def standardised(scores: np.ndarray) -> np.ndarray:
    """Each member's scores of a query divided by their deviation, then the mean."""
    return (scores / scores.std(1, keepdims=True)).mean(0)


def ranks(scores: np.ndarray) -> np.ndarray:
    return scores.argsort(1).argsort(1).mean(0)


# The sections of the page: each yields rows of (what was tried, scores [N, Q]).

Rows = Iterator[tuple[str, np.ndarray]]


def corrected(scores: np.ndarray, masks: np.ndarray, gain: np.ndarray, ridge: float) -> np.ndarray:
    """Scores [N, Q] after the measurements `gain` [C, Q] of chains on `masks` [C, N].

    A query's measurements are modelled as c Σ s_z over its chain's documents, with errors of the scores
    that are independent and have variances in proportion to |s_z|, and noise of `ridge` times the
    variance that these errors give a sum; this is the scores' posterior mean.
    """
    masks, gain = masks - masks.mean(0), gain - gain.mean(0)
    result = np.empty(scores.shape)
    for q, (s, m) in enumerate(zip(scores.T.astype(np.float64), gain.T, strict=True)):
        s = s * max(1e-6, (masks @ s) @ m / ((masks @ s) @ (masks @ s)))
        of_sums = (masks * np.abs(s)) @ masks.T
        noise = ridge * of_sums.diagonal().mean() * np.eye(len(m))
        result[:, q] = s + np.abs(s) * (masks.T @ np.linalg.solve(of_sums + noise, m - masks @ s))
    return result


SECTIONS: dict[str, Callable[[Lab], Rows]] = {}


def section(function: Callable[[Lab], Rows]) -> Callable[[Lab], Rows]:
    SECTIONS[function.__name__] = function
    return function


@section
def normalisation(lab: Lab) -> Rows:
    """One chain; what a document's scores are divided by."""
    chain = lab.chain(0)
    yield "multistage-ekfac", chain.scores()
    for power in (0.25, 0.5, 0.75, 1.0):
        yield f"divided by self-influence to the power {power:g}", chain.relatif(power=power)


@section
def members(lab: Lab) -> Rows:
    """Chains of the bank: seed 1, on the ground truth's subsets 0, 1, ..., as multistage-ensemble has them."""
    chains = [lab.member(k) for k in range(8)]
    plain = np.stack([chain.scores() for chain in chains])
    own = np.stack([chain.self_influence() for chain in chains])[..., None]
    relatif = plain / np.sqrt(own)
    for number in (1, 2, 4, 8):
        yield f"{number} chains, RelatIF: mean", relatif[:number].mean(0)
    yield "4 chains, RelatIF: standardised for each query", standardised(relatif[:4])
    yield "8 chains, RelatIF: standardised for each query", standardised(relatif)
    yield "8 chains, RelatIF: mean rank for each query", ranks(relatif)
    yield "8 chains, RelatIF: median", np.median(relatif, axis=0)
    for power in (0, 0.25, 0.75, 1):
        yield f"8 chains, divided by self-influence to the power {power}: mean", (plain / own**power).mean(0)
    yield "8 chains: mean, divided by the root of the mean self-influence", plain.mean(0) / np.sqrt(own.mean(0))
    inside = lab.bank.subsets[:8, :, None]
    for what, weight in (("in", inside), ("not in", ~inside)):
        mean = (relatif * weight).sum(0) / np.maximum(weight.sum(0), 1)
        yield f"8 chains, RelatIF: mean over those that have the document {what} their half", mean
    yield "8 chains and the study's own, RelatIF: mean", np.concatenate([relatif, [lab.chain(0).relatif()]]).mean(0)


@section
def halves(lab: Lab) -> Rows:
    """Chains of different seeds, each on a half that is none of the ground truth's."""
    relatif = []
    for number in (4, 8, 16, 24):
        relatif += [lab.chain(k + 1, k).relatif() for k in range(len(relatif), number)]
        yield f"{number} chains, RelatIF: mean", np.mean(relatif, axis=0)
    relatif += [lab.member(k).relatif() for k in range(8)]
    yield "24 chains and 8 of the bank, RelatIF: mean", np.mean(relatif, axis=0)


@section
def measured(lab: Lab) -> Rows:
    """24 chains of `halves` and the bank's eight, with what was measured at them: see `corrected`."""
    chains = [lab.chain(k + 1, k) for k in range(24)] + [lab.member(k) for k in range(8)]
    masks = np.concatenate([lab.halves[:24], lab.bank.subsets[:8]]).astype(float)
    gain = -np.stack([chain.losses() for chain in chains])
    relatif = np.stack([chain.relatif() for chain in chains])
    for what, some in (("24 chains and the bank's 8", slice(None)), ("the bank's 8", slice(24, None))):
        yield f"{what}, RelatIF: mean", relatif[some].mean(0)
        for ridge in (0.3, 1.0, 3.0, 10.0):
            scores = corrected(relatif[some].mean(0), masks[some], gain[some], ridge)
            yield f"{what}, after their measurements, ridge {ridge:g}", scores


@section
def same_seed(lab: Lab) -> Rows:
    """Chains of the study's own seed, each on a half that is none of the ground truth's."""
    relatif = [lab.chain(0, k).relatif() for k in range(16, 20)]
    yield "4 chains, RelatIF: mean", np.mean(relatif, axis=0)


@section
def whole(lab: Lab) -> Rows:
    """Chains of other seeds on all documents."""
    relatif = [lab.chain(k).relatif() for k in range(1, 4)]
    yield "3 chains, RelatIF: mean", np.mean(relatif, axis=0)


@section
def blocks(lab: Lab) -> Rows:
    """Other blocks, RelatIF; one chain and four of the bank."""
    for which in ("layers", "mlp", "attention", "first", "last", "head", "layers+head"):
        variant = Variant(blocks=which)
        yield f"{which}, one chain", lab.chain(0).relatif(variant)
        yield f"{which}, 4 chains", np.mean([lab.member(k).relatif(variant) for k in range(4)], axis=0)


@section
def dampings(lab: Lab) -> Rows:
    """Other dampings, RelatIF; one chain and four of the bank."""
    for variant in (Variant(own=own, later=later) for own in (1e-4, 1e-3, 1e-2, 1e-1) for later in (1e-3, 0.1, 10.0)):
        what = f"ρ_pt {variant.own:g}, ρ_ft {variant.later:g}"
        yield f"{what}, one chain", lab.chain(0).relatif(variant)
        yield f"{what}, 4 chains", np.mean([lab.member(k).relatif(variant) for k in range(4)], axis=0)


@section
def labels(lab: Lab) -> Rows:
    """More labels drawn for every factor, RelatIF, one chain."""
    for number in (4, 16):
        yield f"{number} labels", lab.chain(0).relatif(Variant(labels=number))


@section
def checkpoints(lab: Lab) -> Rows:
    """Documents and their curvature also at earlier checkpoints of one chain's pretraining, RelatIF."""
    chain, kept, found = lab.chain(0), {}, lab.checkpoints()
    for epoch in found:
        kept[epoch] = chain.at(epoch, found).relatif()
        yield f"after epoch {epoch} of 20", kept[epoch]
    everything = np.stack([*kept.values(), chain.relatif()])
    yield "mean of all and the end: standardised", standardised(everything)
    yield "the last two and the end: standardised", standardised(everything[-3:])


@section
def halves_and_checkpoints(lab: Lab) -> Rows:
    """Eight chains of `halves`, each also at earlier checkpoints of its pretraining, RelatIF; all means standardised."""
    ends, earlier = [], {8: [], 14: []}
    for k in range(8):
        chain, found = lab.chain(k + 1, k), lab.checkpoints(k + 1, k)
        ends.append(chain.relatif())
        for epoch, scores in earlier.items():
            scores.append(chain.at(epoch, found).relatif())
    yield "at the end", standardised(np.stack(ends))
    for epoch, scores in earlier.items():
        yield f"after epoch {epoch}", standardised(np.stack(scores))
    yield "at all three", standardised(np.stack([*ends, *earlier[8], *earlier[14]]))


@section
def halves_with_head(lab: Lab) -> Rows:
    """Chains of `halves` with the output head as a further block, RelatIF."""
    relatif = [lab.chain(k + 1, k).relatif(Variant(blocks="layers+head")) for k in range(8)]
    for number in (4, 8):
        yield f"{number} chains: mean", np.mean(relatif[:number], axis=0)


@section
def adam(lab: Lab) -> Rows:
    """Pretraining's inverse replaced by the division by √v̂ of its last step, parameter by parameter."""
    yield "no self-influence", lab.chain(0).adam_scores()


@section
def gram(lab: Lab) -> Rows:
    """The documents' exact curvature, across blocks, on top of EK-FAC's inverse W: (c + G W Gᵀ/N)⁻¹ times the scores."""
    chain = lab.chain(0)
    products = chain.gram() / len(lab.examples["pretraining"])
    for c in (0.1, 1.0, 10.0):
        damped = products + c * products.diagonal().mean() * np.eye(len(products))
        solved = np.linalg.solve(damped, chain.scores().astype(np.float64))
        yield f"c {c:g} of the mean self-influence", solved
        # Leave-one-out of the linear problem divides by the diagonal of the inverse.
        yield f"c {c:g}, divided by its own leave-one-out", solved / np.linalg.inv(damped).diagonal()[:, None]


@section
def solvers(lab: Lab) -> Rows:
    """Estimators of the study itself; those that run on a few queries are compared with EK-FAC on the same ones."""
    for name in ("multistage-source", "multistage-source-adam", "multistage-kfac", "trak"):
        yield name, lab.study_scores(name)
    for name in ("multistage-pcg", "cg", "lissa", "arnoldi"):
        scores = lab.study_scores(name)
        yield f"{name}, on {(~np.isnan(scores[0])).sum()} queries", scores
    yield "multistage-ekfac, on these queries", np.where(np.isnan(scores), np.nan, lab.chain(0).scores())


def table(lab: Lab, rows: Rows, base: np.ndarray) -> None:
    subsets, gain = lab.bank.subsets[lab.bank.subset], -lab.bank.measurements
    baseline = subset_predictions(base, subsets)
    print(
        "| what | LDS | even queries | odd queries | difference (95% interval) |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for label, scores in rows:
        predicted = subset_predictions(scores, subsets)
        of = rank_correlations(predicted, gain)
        low, high = difference_interval(predicted, baseline, gain)
        shift = np.nanmean(of) - np.nanmean(rank_correlations(baseline, gain))
        print(
            f"| {label} | {np.nanmean(of):.3f} | {np.nanmean(of[::2]):.3f} | {np.nanmean(of[1::2]):.3f} "
            f"| {shift:+.3f} ({low:+.3f} to {high:+.3f}) |",
            flush=True,
        )


def difference_interval(predicted: np.ndarray, baseline: np.ndarray, gain: np.ndarray) -> tuple[float, float]:
    """95% interval of the difference of two LDS, resampling retrainings and queries for both alike."""
    generator = np.random.default_rng(0)
    rows, columns = predicted.shape
    differences = []
    for _ in range(BOOTSTRAP):
        chosen = generator.integers(rows, size=rows)[:, None], generator.integers(columns, size=columns)[None]
        pair = [np.nanmean(rank_correlations(p[chosen], gain[chosen])) for p in (predicted, baseline)]
        differences.append(pair[0] - pair[1])
    return tuple(np.quantile(differences, [0.025, 0.975]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tables of docs/accuracy.md.")
    parser.add_argument("sections", nargs="*", default=[], help=f"of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--results", type=Path, default=Path("results/facts"))
    parser.add_argument("--cache", type=Path, default=Path("results/facts-accuracy"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lab = Lab(arguments.results, arguments.cache)
    base = lab.chain(0).relatif()
    for name in arguments.sections or SECTIONS:
        print(f"\n{name}: {SECTIONS[name].__doc__ or ''}", flush=True)
        table(lab, SECTIONS[name](lab), base)


if __name__ == "__main__":
    main()
