"""The one table of all that results tell: each row is a figure or a fact, with all that is to know.

``results.csv``, ``results.md``, the terminal's table, the report's page, the card of an export,
MLflow's metrics and view, a search's objectives and bounds and ``docs/metrics.md`` are made from it.
A new metric is a function that measures it and a row here. Rows stand in the order in which tables
show them; :data:`CSV_ORDER` has that of ``results.csv``.
"""

from dataclasses import replace
from typing import Any

from qsweep.base import numbers
from qsweep.evaluate.metrics import FIFTHS, QUANTILES, QUARTERS
from qsweep.results import long_answers
from qsweep.results.columns import derived
from qsweep.results.columns.column import (
    Column,
    Shown,
    add,
    figures,
    of_artifact,
    of_measurement,
    of_options,
    of_result,
    of_speed,
    of_trial,
)
from qsweep.results.covered import covers, draws_text, number_asked, number_of_draws
from qsweep.results.record import Row
from qsweep.results.traits import seed_of
from qsweep.tasks.task import CAPABILITIES


def retention(capability: str) -> Column:
    """The column of what is kept of a capability."""

    def get(row: Row) -> Any:
        found = (row.record.capabilities or {}).get(capability)
        return None if found is None else found.retention

    return Column(
        f"retention_{capability}",
        f"share of the reference's {capability} score above chance that is left",
        "trial", get, "share", "up", "name tasks in eval.tasks", csv=True, text=numbers.percent,
        tables={"html": capability},
    )  # fmt: skip


LONG = "add eval=long"

QUARTER_WORDS = dict(zip(QUARTERS, ("first", "second", "third", "last"), strict=True))
FIFTH_WORDS = dict(zip(FIFTHS, ("lowest", "low", "middle", "high", "highest"), strict=True))
QUANTILE_WORDS = dict(zip(
    QUANTILES, ("median", "90th percentile", "99th percentile", "99.9th percentile", "largest"),
    strict=True,
))  # fmt: skip


def served(name: str, what: str, beyond: str, heading: str) -> tuple[Column, ...]:
    """The columns of the run that has one more part as it is served (:mod:`qsweep.evaluate.served`).

    Args:
        name: What they are called by.
        what: All that this run has as it is served.
        beyond: What the run before it had, which this one adds to.
        heading: Of the part, in a few letters.
    """
    kld, added, ratio = f"kld_{name}", f"kld_{name}_added", f"ppl_ratio_{name}"
    needs = "needs a format or a setting that quantizes them"
    shown = Shown(f"KLD {heading}", optional=True)
    short = replace(
        shown, cell=lambda row: numbers.divergence(figures(row, "measurement").get(kld))
    )
    extra = Shown(f"+KLD {heading}", optional=True)
    of_ratio = Shown(f"ratio {heading}", optional=True)
    return (
        of_measurement(
            kld, f"mean KL divergence per token with {what} as served, nats ± standard error",
            unit="nat", better="down", needs=needs, csv=True, error=f"{kld}_stderr", best=True,
            tables={"markdown": shown, "html": shown, "card": shown, "terminal": short}),
        of_measurement(f"{kld}_stderr", "its standard error, over windows", csv=True),
        of_measurement(
            added, f"how much of that comes on top of {beyond}, nats, paired 95 % interval",
            unit="nat", better="down", needs=needs, csv=True,
            write=derived.difference(added), tables={"markdown": extra, "html": extra}),
        of_measurement(f"{added}_low", "low end of that interval", unit="nat", csv=True),
        of_measurement(f"{added}_high", "high end of that interval", unit="nat", csv=True),
        of_measurement(
            ratio, f"perplexity with {what} as served / the reference's, paired 95 % interval",
            better="down", needs=needs, csv=True, text=numbers.ratio,
            ends=(f"{ratio}_low", f"{ratio}_high"),
            tables={"markdown": of_ratio, "html": of_ratio, "card": of_ratio}),
        of_measurement(f"{ratio}_low", "low end of that ratio's interval", csv=True),
        of_measurement(f"{ratio}_high", "high end of that ratio's interval", csv=True),
        of_measurement(
            f"top1_agreement_{name}", f"how often the reference's token is preferred with {what} as "
            "served", unit="share", better="up", needs=needs, csv=True, text=numbers.percent),
        of_measurement(f"top1_agreement_{name}_stderr", "its standard error, over windows"),
        of_measurement(
            f"ear_{name}", f"expected acceptance rate with {what} as served", unit="share",
            better="up", needs=needs, text=derived.fixed(4)),
        of_measurement(f"ear_{name}_stderr", "its standard error, over windows"),
        of_measurement(
            f"true_prob_rms_{name}", "root mean square change of the true token's probability with "
            f"{what} as served"),
        *(
            of_measurement(
                f"{kld}_{end}", f"{words} of {kld} over tokens, nats", unit="nat", better="down",
                needs=needs, csv=True, text=derived.significant(3))
            for end, words in QUANTILE_WORDS.items()
        ),
        *(
            of_measurement(
                f"{kld}_{quarter}", f"{kld} over the {words} quarter of the windows' positions, nats",
                unit="nat", needs=needs, csv=True, text=derived.significant(3))
            for quarter, words in QUARTER_WORDS.items()
        ),
    )  # fmt: skip


# --- the table ---------------------------------------------------------------------------------

# fmt: off
LABEL = add(Column(
    "label", "model and setting, and whatever else sets a row apart from all others", "row",
    lambda row: row.label, csv=True,
    tables={"terminal": "trial", "markdown": "trial", "html": "trial", "search": "trial",
            "own_run": "trial"},
))
RANK = add(Column(
    "rank", "the ranks that it may have by KLD (by perplexity without one) among those measured alike, "
    "every pair of them compared on its own windows: a range is a tie, = one of the silent zone", "row",
    derived.standing("text"),
    tables={t: Shown("rank", optional=True) for t in ("terminal", "markdown", "html")}))
RANK_FIRST = add(Column(
    "rank_first", "the best of these ranks, from 1", "row", derived.standing("first"), csv=True))
RANK_LAST = add(Column(
    "rank_last", "the worst of them", "row", derived.standing("last"), csv=True))
SILENT = add(Column(
    "silent", "whether its KLD is so small that neither that nor perplexity ranks it", "row",
    derived.standing("silent"), csv=True))
STATUS = add(of_trial("status", "finished, failed or skipped", csv=True))
MODEL = add(of_trial("model", "the model's name", csv=True))
METHOD = add(of_trial("method", "how it was quantized", csv=True, view=("tags", 12)))
BACKEND = add(of_trial("backend", "whose code did it", csv=True))
FORMAT = add(of_artifact("format", "file format", csv=True, tables={"html": "format"}))
NUMBER_FORMAT = add(Column(
    "number_format", "what codes mean; empty where bits, group_size and type say it all", "trial",
    lambda row: row.record.options.get("format"), csv=True, view=("params", 13),
    tables={table: Shown("numbers", optional=True) for table in ("markdown", "html")}))
BITS = add(of_options("bits", "nominal bits", csv=True, view=("tags", 13), tables={"html": "bits"}))
GROUP_SIZE = add(of_options(
    "group_size", "weights that share a scale; -1: a whole channel", csv=True, view=("params", 14)))
DESC_ACT = add(of_options(
    "desc_act", "whether columns are quantized in the order of their activations", csv=True))
SYM = add(of_options("sym", "whether the grid lies symmetrically around 0", csv=True))
TYPE = add(of_options("type", "llama.cpp's type", csv=True))
KV_CACHE = add(Column(
    "kv_cache", "what keys and values are stored as; layers that differ by their numbers", "trial",
    derived.kv_cache, csv=True, tables={
        t: Shown("KV cache", optional=True) for t in ("markdown", "html", "card")}))
BPW = add(of_artifact(
    "bpw", "bits per weight of the quantized layers, scales included", figure=True, unit="bit",
    better="down", csv=True, text=derived.fixed(2), best=True, view=("metrics", 10),
    tables={"terminal": "bpw", "markdown": "bpw", "html": "bpw"}))
BPW_TOTAL = add(of_artifact(
    "bpw_total", "all stored bits per parameter of the whole model", figure=True, unit="bit",
    better="down", csv=True, text=derived.fixed(2), tables={"own_run": "bpw total"}))
SIZE_GB = add(of_artifact(
    "size_gb", "bytes of all weight files / 1e9", figure=True, unit="GB", better="down", csv=True,
    text=numbers.gigabytes, best=True, view=("metrics", 9),
    tables={"terminal": "GB", "markdown": "size GB", "html": "size GB", "search": "GB",
            "own_run": "size GB"}))
ACTIVE_GB = add(of_artifact(
    "active_gb", "bytes read for each token that is generated / 1e9: of a mixture's experts those "
    "that a token is sent to", figure=True, unit="GB", better="down", csv=True,
    text=numbers.gigabytes, tables={"html": Shown("active GB", optional=True)}))
KEPT_LAYERS = add(Column(
    "kept_layers",
    "linear layers that stayed in 16 bits: by what they are, by a rule, or by their shape",
    "artifact", lambda row: (row.record.artifact and row.record.artifact.kept_layers) or None,
    csv=True))
FLAGS = add(Column(
    "flags", "what is not as it should be in its tensors: which, and what that means", "artifact",
    derived.flags, csv=True,
    tables={"html": Shown("flags", cell=derived.flag_count)}))
PPL: Column = add(of_measurement(
    "ppl", "perplexity ± standard error over windows", better="down", csv=True, best=True,
    error="ppl_stderr", hover=("perplexity", 4), tables={
        "markdown": "ppl", "html": "ppl", "card": "ppl",
        "terminal": Shown("ppl", 100, narrow=lambda row: numbers.with_error(PPL.get(row), None))}))
PPL_STDERR = add(of_measurement("ppl_stderr", "standard error of the perplexity, over windows",
    csv=True))
PPL_RATIO: Column = add(of_measurement(
    "ppl_ratio", "perplexity / the reference's, paired 95 % interval", better="down", csv=True,
    best=True, by_bits=True, text=numbers.ratio, ends=("ppl_ratio_low", "ppl_ratio_high"),
    hover=("ratio (95 %)", 3), view=("metrics", 6), tables={
        "markdown": "ratio (95 %)", "html": "ratio", "card": "ratio (95 %)",
        "search": "ratio (95 %)",
        "terminal": Shown("ratio", cell=lambda row: numbers.ratio(PPL_RATIO.get(row)))}))
PPL_RATIO_LOW = add(of_measurement("ppl_ratio_low", "low end of the ratio's interval", csv=True))
PPL_RATIO_HIGH = add(of_measurement("ppl_ratio_high", "high end of the ratio's interval", csv=True))
PPL_RATIO_INTERVAL = add(Column(
    "ppl_ratio_interval", "the ratio's paired 95 % interval", "row", derived.interval,
    tables={"terminal": Shown("95 %", 100)}))
EXPECTED_LOW = add(Column(
    "expected_low", "the field's expected ratio", "trial", derived.expected(0), csv=True,
    write=lambda row: numbers.expected(row.record.expected),
    tables={"terminal": Shown("expected", 100), "markdown": "expected", "html": "expected"}))
EXPECTED_HIGH = add(Column("expected_high", "high end of that", "trial", derived.expected(1),
    csv=True))
KLD: Column = add(of_measurement(
    "kld", "mean KL divergence per token, nats ± standard error", unit="nat", better="down",
    needs="set eval.divergence=true", csv=True, error="kld_stderr", write=derived.kld, best=True,
    by_bits=True, hover=("KLD, nats", 6), view=("metrics", 7), tables={
        "markdown": "KLD", "html": "KLD", "card": "KLD",
        "terminal": Shown("KLD", cell=lambda row: numbers.divergence(KLD.get(row)))}))
KLD_STDERR = add(of_measurement("kld_stderr", "standard error of the divergence, over windows",
    csv=True))
KLD_ENDS = tuple(add(of_measurement(
    f"kld_{end}", f"{end} end of its 95 % interval, where windows were read until one was narrow "
    "enough", unit="nat", needs="set eval.until", csv=True)) for end in ("low", "high"))
KLD_MEDIAN, KLD_P90, KLD_P99, KLD_P999, KLD_MAX = (
    add(of_measurement(
        f"kld_{end}", f"{words} over tokens, nats", unit="nat", better="down",
        needs="set eval.divergence=true", csv=True, text=derived.significant(3),
        tables={"markdown": "p99 KLD", "html": "KLD p99"} if end == "p99" else {}))
    for end, words in QUANTILE_WORDS.items())
SERVED = tuple(map(add, (
    *served("activations", "weights and activations", "the weights alone", "act."),
    *served("kv", "weights, activations and the KV cache", "that without the cache", "cache"),
    of_measurement(
        "kv_bytes_per_token", "bytes that a token's keys and values take over all layers, in a "
        "sequence as long as a window", unit="B", better="down", needs="set kv_cache", csv=True,
        text=derived.fixed(0), tables={
            t: Shown("KV B/token", optional=True) for t in ("markdown", "html", "card")}),
)))
KLD_QUARTERS = tuple(add(of_measurement(
    f"kld_{name}", f"the same over the {words} quarter of the windows' positions, nats", unit="nat",
    needs="set eval.divergence=true", csv=True, text=derived.significant(3)))
    for name, words in QUARTER_WORDS.items())
KLD_FIFTHS = tuple(add(of_measurement(
    f"kld_{name}", f"the same over the fifth of the tokens where the reference's entropy is {words}, "
    "nats", unit="nat", needs="set eval.divergence=true", csv=True, text=derived.significant(3)))
    for name, words in FIFTH_WORDS.items())
EAR = add(of_measurement(
    "ear", "expected acceptance rate, 1 - half of the sum of |p - q|, mean per token ± standard error: "
    "how often a token drawn from it would pass for one of the reference's", unit="share", better="up",
    needs="set eval.divergence=true", csv=True, error="ear_stderr", best=True,
    view=("metrics", 17), hover=("acceptance", 8), tables={
        t: Shown("EAR", optional=True) for t in ("markdown", "html", "card")}))
EAR_STDERR = add(of_measurement("ear_stderr", "its standard error, over windows", csv=True))
KLD_FLOOR_DTYPE = add(of_measurement(
    "kld_floor_dtype", "mean |KLD| of the reference in the run's dtype from itself in float32",
    unit="nat"))
KLD_FLOOR_BATCH = add(of_measurement(
    "kld_floor_batch", "mean |KLD| of the reference from itself at another batch size", unit="nat"))
NOISE_FLOOR = add(Column(
    "noise_floor", "the larger of the two floors: below it a divergence says nothing", "row",
    lambda row: row.noise_floor, "nat", csv=True, text=numbers.divergence))
TOP1_AGREEMENT = add(of_measurement(
    "top1_agreement", "how often both prefer the same token", unit="share", better="up",
    needs="set eval.divergence=true", csv=True, text=numbers.percent, best=True,
    hover=("top-1 agreement", 7),
    view=("metrics", 8), tables={t: "top-1" for t in ("terminal", "markdown", "html", "card")}))
TOP1_AGREEMENT_STDERR = add(of_measurement("top1_agreement_stderr",
    "its standard error, over windows"))
TRUE_PROB_RMS = add(of_measurement(
    "true_prob_rms", "root mean square change of the true token's probability"))
KLD_NATIVE = add(of_speed(
    "kld_native", "mean KL divergence of llama.cpp's own run of the file, with the trial's KV cache "
    "if that is of its types, nats ± standard error",
    unit="nat",
    better="down", needs="set eval.kld_native=true", csv=True, error="kld_native_stderr",
    tables={"own_run": "KLD"}))
KLD_NATIVE_STDERR = add(of_speed("kld_native_stderr", "its standard error, over windows"))
EAR_NATIVE = add(of_speed(
    "ear_native", "expected acceptance rate of that run", unit="share", better="up",
    needs="set eval.kld_native=true", text=derived.fixed(4)))
TOP1_AGREEMENT_NATIVE = add(of_speed(
    "top1_agreement_native", "how often that run prefers the reference's token", unit="share",
    csv=True, text=numbers.percent, tables={"own_run": "top-1"}))
PPL_RATIO_NATIVE = add(of_speed("ppl_ratio_native", "perplexity of that run / the reference's"))
NATIVE_TOKENS = add(of_speed("native_tokens", "tokens that it was measured on", unit="token"))
RETENTIONS = tuple(add(retention(capability)) for capability in CAPABILITIES)
QUALITY = add(of_measurement(
    "quality", "1: the reference, 0: a ratio of 1.20", better="up", csv=True,
    text=derived.fixed(3), best=True, tables={"markdown": "quality", "search": "quality"}))
QUALITY_PER_GB: Column = add(of_measurement(
    "quality_per_gb", "quality (1: the reference, 0: ratio 1.20) per GB", unit="1/GB",
    better="up", csv=True,
    text=derived.significant(4), best=True, by_bits=True, view=("metrics", 11), tables={
        "markdown": "quality/GB", "html": "quality/GB", "search": "quality/GB",
        "terminal": Shown("q/GB", 110, lambda row: numbers.significant(QUALITY_PER_GB.get(row), 3))}))
DRAWS = add(Column(
    "draws", "draws of the calibration text and the quantizer's seed that its figures are the mean of; "
    "empty where nothing is drawn", "trial", lambda row: number_of_draws(row.record), csv=True,
    write=draws_text, tables={
        t: Shown("draws", optional=True) for t in ("terminal", "markdown", "html")}))
DRAWS_ASKED = add(Column(
    "draws_asked", "how many seeds asked for", "trial",
    lambda row: number_asked(row.record), csv=True))
SEED = add(Column(
    "seed", "what drew them, where it is one draw", "trial",
    lambda row: None if row.record.draws else seed_of(row.record), csv=True))
COVERS = add(Column(
    "covers", "what its intervals cover: windows, or windows, draws", "trial",
    lambda row: covers(row.record), csv=True))
SUFFERS = add(Column(
    "suffers", "the capability of which least was kept; ? where that may be chance", "row",
    lambda row: row.suffers, tables={"terminal": "suffers most"}))
WORST_CAPABILITY = add(Column(
    "worst_capability", "the capability of which least was kept", "trial",
    derived.field_of("suffers_most", "capability"), csv=True))
WORST_RETENTION = add(Column(
    "worst_retention", "how much of it", "trial", derived.field_of("suffers_most", "retention"),
    "share", csv=True, text=numbers.percent))
LONG_LENGTH_RATIO = add(Column(
    "long_length_ratio", "tokens of its long answers / the reference's, paired 95 % interval over "
    "problems and samples", "trial", derived.field_of("long", "length_ratio"), needs=LONG, figure=True,
    csv=True, text=numbers.ratio, write=long_answers.ratio_cell,
    tables={t: Shown("answer length", optional=True) for t in ("markdown", "html")}))
LONG_LENGTH_RATIO_LOW = add(Column(
    "long_length_ratio_low", "low end of that interval", "trial",
    derived.field_of("long", "length_ratio_low"), csv=True))
LONG_LENGTH_RATIO_HIGH = add(Column(
    "long_length_ratio_high", "high end of that interval", "trial",
    derived.field_of("long", "length_ratio_high"), csv=True))
TRUNCATED = add(Column(
    "truncated", "share of its long answers that ran into the most tokens allowed", "trial",
    derived.field_of("long", "truncated"), "share", "down", LONG, figure=True, csv=True,
    text=numbers.percent, tables={"html": Shown("truncated", optional=True)}))
LOOPS = add(Column(
    "loops", "share of its long answers that end in a loop", "trial",
    derived.field_of("long", "loops"), "share", "down", LONG, figure=True, csv=True,
    text=numbers.percent, tables={"html": Shown("loops", optional=True)}))
DIVERGENCE_TOKEN = add(Column(
    "divergence_token", "token by which half of its greedy answers left the reference's "
    "(Kaplan-Meier); empty: fewer have", "trial",
    derived.field_of("long", "divergence_token"), "token", needs=LONG, figure=True, csv=True,
    write=long_answers.divergence_cell,
    tables={t: Shown("parts at token", optional=True) for t in ("markdown", "html")}))
DIVERGENCE_TOKEN_LOW = add(Column(
    "divergence_token_low", "low end of that interval", "trial",
    derived.field_of("long", "divergence_token_low"), "token", csv=True))
DIVERGENCE_TOKEN_HIGH = add(Column(
    "divergence_token_high", "high end of that interval", "trial",
    derived.field_of("long", "divergence_token_high"), "token", csv=True))
VERDICT = add(Column(
    "verdict", "by the ratio; ? where its interval straddles a bound", "measurement",
    derived.measured("verdict"),
    csv=True, write=lambda row: derived.status_word(row.record, row.measurement),
    hover=("verdict", 2), view=("tags", 5),
    sort=lambda row: -1 if row.record.reference else PPL_RATIO.get(row),
    tables={t: "verdict" for t in ("terminal", "markdown", "html", "card", "search")}))
KLD_VERDICT = add(Column(
    "kld_verdict", "by the KLD, in the verdict's words; ? where its 95 % interval straddles a bound; "
    "behind a ≠ the verdict by the ratio, where that is another", "measurement",
    derived.kld_verdict, csv=True, write=derived.both_verdicts,
    tables={t: Shown("by KLD", optional=True) for t in ("markdown", "html", "card")}))
VERDICT_OPEN = add(Column(
    "verdict_open", "whether the ratio's interval straddles a bound", "measurement",
    derived.verdict_open, csv=True))
VERDICT_SURE = add(of_measurement(
    "verdict_sure", "whether the whole interval gets the same verdict", figure=False))
NO_VERDICT = add(Column("no_verdict", "why there is no verdict", "trial",
    derived.no_verdict, csv=True))
DECODE_TPS = add(of_speed(
    "decode_tps", "tokens per second, batch 1, on the serving kernel", unit="token/s", better="up",
    needs="add eval=speed", csv=True, text=derived.significant(3),
    tables={"terminal": Shown("tok/s", 90), "html": "decode tok/s"}))
PREFILL_TPS = add(of_speed(
    "prefill_tps", "tokens per second of a long prompt", unit="token/s", better="up",
    needs="add eval=speed",
    csv=True, text=derived.significant(3), tables={"html": "prefill tok/s"}))
PEAK_MEMORY_GB_SPEED = add(of_speed(
    "peak_memory_gb_speed", "peak memory of serving it, weights and cache included", unit="GB",
    csv=True))
LOAD_S = add(of_speed("load_s", "time to load it for serving", unit="s"))
PREFILL_TOKENS = add(of_speed("prefill_tokens", "length of the prompt that was timed",
    unit="token"))
DECODE_TOKENS = add(of_speed("decode_tokens", "how many tokens were then generated", unit="token"))
SPEED_ON_GPU = add(of_speed("speed_on_gpu", "whether the kernel ran on a GPU: 1 or 0"))
CALIBRATION = add(of_trial(
    "calibration", "text the quantizer saw", csv=True, view=("tags", 15),
    tables={"html": "calibration"}))
CALIBRATION_TOKENS = add(Column(
    "calibration_tokens", "tokens of it that were asked for", "trial",
    derived.field_of("calibration_tokens", "asked"), "token", csv=True))
CALIBRATION_TOKENS_DISTINCT = add(Column(
    "calibration_tokens_distinct",
    "different tokens of that text that it saw, of those asked for", "trial",
    derived.field_of("calibration_tokens", "distinct"), "token", csv=True,
    write=derived.tokens_seen, tables={"html": "calibration tokens"}))
EXPERT_TOKENS_MEDIAN = add(Column(
    "expert_tokens_median", "tokens of the calibration text that the middle expert was sent",
    "artifact", derived.of_experts("median"), "token", csv=True, text=derived.significant(3),
    tables={"html": Shown("tokens per expert", optional=True)}))
EXPERT_TOKENS_LOWEST = add(Column(
    "expert_tokens_lowest", "tokens of the calibration text that the least used expert was sent",
    "artifact", derived.of_experts("lowest"), "token", csv=True))
EXPERTS_UNSEEN = add(Column(
    "experts_unseen", "experts, of all layers, that were sent no token of the calibration text",
    "artifact", derived.of_experts("unseen"), csv=True))
EXPERTS_SHORT = add(Column(
    "experts_short",
    "share of experts that were sent fewer tokens of the calibration text than they have inputs",
    "artifact", derived.of_experts("short_share"), "share", csv=True, text=numbers.percent,
    tables={"html": Shown("experts short of tokens", optional=True)}))
RUNTIMES = add(Column(
    "runtimes", "runtimes that load it", "artifact", lambda row: " ".join(row.record.runtimes),
    csv=True, write=lambda row: ", ".join(row.record.runtimes), tables={
        "markdown": "served by", "search": "served by", "own_run": "served by",
        "html": Shown("served by", cell=derived.served_by)}))
NATIVE_ON = add(Column(
    "native_on", "generations of GPUs that multiply it as it is, activations included; any: weights "
    "are unpacked to 16 bits", "trial", lambda row: derived.native_on(row) or None, csv=True,
    tables={table: Shown("native on", cell=derived.needs_generation, optional=True)
            for table in ("markdown", "html")}))
BECAUSE = add(Column(
    "only_own_run", "why there is nothing but llama.cpp's own run", "trial",
    lambda row: row.record.only_own_run, tables={"own_run": "because"}))
TIME = add(Column(
    "total_s", "to quantize and to measure", "trial", lambda row: row.record.total_seconds, "s",
    text=numbers.seconds, tables={"terminal": Shown("time", 90), "markdown": "time", "html": "time"}))
QUANTIZE_S = add(of_trial(
    "quantize_s", "time to quantize", figure=True, unit="s", better="down", csv=True,
    text=numbers.seconds, view=("metrics", 16)))
SHARED_S = add(of_trial(
    "shared_s", "how much of it was spent on what other trials share", figure=True, unit="s",
    csv=True))
EVALUATE_S = add(of_trial(
    "evaluate_s", "time to measure", figure=True, unit="s", better="down", csv=True,
    text=numbers.seconds))
SECONDS = add(of_trial("seconds", "time that the trial took in all", figure=True, unit="s"))
PEAK_MEMORY_GB = add(of_trial(
    "peak_memory_gb", "peak memory of quantizing and measuring, on the device", figure=True,
    unit="GB", better="down", csv=True))
PEAK_HOST_MEMORY_GB = add(of_trial(
    "peak_host_memory_gb", "the same, on the host", figure=True, unit="GB", csv=True))
CORPUS = add(Column("corpus", "text that was measured", "measurement", derived.measured("corpus"),
    csv=True))
PRESET = add(Column("preset", "in which windows", "measurement", derived.measured("preset"),
    csv=True))
PRIMARY = add(Column(
    "primary", "whether the trial's verdict rests on it", "measurement",
    derived.measured("primary"), csv=True))
MEASURED_ON = add(Column(
    "measured_on", "corpus, preset", "measurement",
    lambda row: row.measurement and f"{row.measurement.corpus} ({row.measurement.preset})",
    tables={"html": "measured on"}))
TOKENS_SCORED = add(Column(
    "tokens_scored", "tokens whose likelihood counts", "measurement",
    derived.fact("tokens_scored"), "token", csv=True, tables={"card": "tokens"}))
WINDOWS = add(Column("windows", "windows that they lie in", "measurement",
    derived.fact("windows"), csv=True))
WINDOWS_OF = add(Column(
    "windows_of", "windows of the text, where these were read until an interval was narrow enough",
    "measurement", derived.windows_of, csv=True, write=derived.windows_read, tables={
        t: Shown("windows read", optional=True) for t in ("markdown", "html", "card")}))
SWEEP = add(of_trial("sweep", "which sweep", csv=True, tables={"html": "sweep"}))
PEER = add(Column(
    "peer", "the artifact of another maker that is nearest in size", "row",
    derived.peer("label"), csv=True, tables={"html": "nearest in size"}))
PEER_SIZE_GB = add(Column(
    "peer_size_gb", "its size", "row", derived.peer("size_gb"), "GB", csv=True,
    text=numbers.gigabytes))
PEER_PPL_RATIO = add(Column(
    "peer_ppl_ratio",
    "perplexity / that one's, paired 95 % interval: below 1 is better than it; a tie where the "
    "interval covers 1", "row",
    derived.peer("ppl_ratio"), csv=True,
    tables={"html": Shown("ratio to it (95 %)", cell=derived.peer_ratio)}))
PEER_PPL_RATIO_LOW = add(Column(
    "peer_ppl_ratio_low", "low end of that interval", "row", derived.peer("ppl_ratio_low"),
    csv=True))
PEER_PPL_RATIO_HIGH = add(Column(
    "peer_ppl_ratio_high", "high end of that interval", "row", derived.peer("ppl_ratio_high"),
    csv=True))
PEER_TIE = add(Column(
    "peer_tie", "whether that interval covers 1, so that neither is better", "row",
    derived.peer("tie"), csv=True))
PEER_KLD_DIFFERENCE = add(Column(
    "peer_kld_difference", "KLD less that one's, nats", "row", derived.peer("kld_difference"),
    "nat", csv=True, text=numbers.divergence))
PEER_KLD_DIFFERENCE_LOW = add(Column(
    "peer_kld_difference_low", "low end of its paired 95 % interval", "row",
    derived.peer("kld_difference_low"), "nat", csv=True))
PEER_KLD_DIFFERENCE_HIGH = add(Column(
    "peer_kld_difference_high", "high end of its paired 95 % interval", "row",
    derived.peer("kld_difference_high"), "nat", csv=True))
SETTING = add(Column("setting", "calibration and backend", "trial", derived.setting,
    hover=("made by", 1)))
SIZE = add(Column("size", "size, bits per weight, layers in 16 bits", "artifact", derived.size,
    hover=("size", 5)))
for _name, _meaning in {
    "name": "the trial's own name", "reference": "whether it is the unquantized model",
    "fidelity": "full, or what a search measured in its place", "reason": "why it did not finish",
    "implied": "whether it ran for others' sake alone", "device": "where it ran",
    "dtype": "in which dtype",
    "model_hash": "of the model's content", "key": "of the trial", "log": "its log",
}.items():
    add(of_trial(_name, _meaning, csv=True))
MODEL_PATH = add(Column("model_path", "where the model came from", "trial", derived.model_path,
    csv=True))
DEQUANTIZED_FROM = add(of_trial(
    "dequantized_from",
    "what the model was released in, where that is quantized: its reference is what dequantizing it "
    "gives", csv=True, tables={"html": "reference dequantized from"}))
ARTIFACT = add(Column(
    "artifact", "the folder with what was made", "artifact",
    lambda row: row.record.artifact and row.record.artifact.path, csv=True))

FLIPS = add(Column(
    "flips", "share of all right or wrong answers of its tasks that are wrong where the reference's is "
    "right, or right where that is wrong, 95 % interval", "trial", derived.flipped("flips"), "share",
    "down", "name tasks of right or wrong answers in eval.tasks", figure=True, csv=True,
    text=numbers.percent, write=derived.flips))
LOST = add(Column(
    "lost", "how many of them the reference alone had right", "trial", derived.flipped("lost"),
    figure=True, csv=True))
GAINED = add(Column(
    "gained", "how many of them it alone has right", "trial", derived.flipped("gained"),
    figure=True, csv=True))

SCORE = add(of_result("task", "score", "the task's score", unit="share"))
TASK_P = add(of_result("task", "p", "p of no difference to the reference, not corrected"))
RETENTION = add(of_result("capability", "retention",
    "share of the reference's score above chance that is left"))
for _name, _meaning in {
    "retention_low": "low end of its 95 % interval",
    "retention_high": "high end of its 95 % interval",
    "difference": "mean difference to the reference's score",
    "p": "p of no difference, not corrected",
}.items():
    add(of_result("capability", _name, _meaning))
for _of in ("task", "capability"):
    for _name, _meaning in {
        "lost": "answers that the reference alone had right",
        "gained": "answers that it alone has right",
        "flips": "share of all answers that are either",
        "flips_low": "low end of its 95 % interval",
        "flips_high": "high end of its 95 % interval",
        "changed": "share of answers by another choice than the reference's, from wrong to wrong too",
    }.items():
        add(of_result(_of, _name, _meaning))

# The columns that were promised, in their order; more may follow.
PROMISED = tuple((
    "status model method backend bits group_size desc_act sym type calibration corpus preset "
    "bpw bpw_total size_gb ppl ppl_stderr ppl_ratio ppl_ratio_low ppl_ratio_high kld kld_stderr "
    "kld_p99 top1_agreement quality quality_per_gb verdict quantize_s evaluate_s peak_memory_gb "
    "reason key artifact "
).split())
CSV_ORDER = (*PROMISED, *(
    "name reference primary verdict_open expected_low expected_high kld_median kld_p90 kld_p999 "
    "kld_max noise_floor tokens_scored windows format runtimes peak_host_memory_gb prefill_tps "
    "decode_tps peak_memory_gb_speed kld_native device dtype sweep log shared_s fidelity "
    "worst_capability worst_retention "
).split(), *(column.name for column in RETENTIONS), *(
    "kept_layers model_path model_hash calibration_tokens calibration_tokens_distinct "
    "no_verdict implied label top1_agreement_native flags peer peer_size_gb peer_ppl_ratio "
    "peer_ppl_ratio_low peer_ppl_ratio_high peer_tie peer_kld_difference peer_kld_difference_low "
    "peer_kld_difference_high dequantized_from number_format native_on "
).split(), *(column.name for column in (*SERVED, *KLD_QUARTERS) if column.csv), *(
    "kv_cache active_gb expert_tokens_median expert_tokens_lowest experts_unseen experts_short "
    "rank_first rank_last silent ear ear_stderr kld_verdict flips lost gained "
).split(), *(column.name for column in KLD_FIFTHS), *(
    "long_length_ratio long_length_ratio_low long_length_ratio_high truncated loops "
    "divergence_token divergence_token_low divergence_token_high kld_low kld_high windows_of "
    "draws draws_asked covers seed"
).split())
# fmt: on
