"""Which comparison every effect is that README.md and results/README.md quote: what `experiments.quotes` writes there.

A comparison is a study, a text, a variant and its reference; of the frontier its cell, a budget, and what stands there.
"""

from collections.abc import Mapping, Sequence

Comparison = tuple[str, str, str | int, str]


def both(
    study: str, variant: str, reference: str, corpora: Sequence[str] = ("gutenberg", "fineweb")
) -> list[Comparison]:
    """A comparison on the books, then on FineWeb; the tables of the selective study have them the other way round."""
    return [(study, corpus, variant, reference) for corpus in corpora]


def of_paper(variant: str, reference: str) -> list[Comparison]:
    """Of the selective study, FineWeb first: that is the paper's text."""
    return both("selective", variant, reference, ("fineweb", "gutenberg"))


def placed(place: str, usual: str) -> list[Comparison]:
    """Frozen maps at a place, against the same maps trained there, and against the usual start."""
    frozen = f"frozen_{place}"
    return [*both("selective", frozen, f"trained_{place}"), *both("selective", frozen, usual)]


def at_its_bytes(variant: str) -> list[Comparison]:
    """Of the adapters: a row against the model trained whole whose file is as large."""
    return both("adapters", variant, f"trained_at_{variant}_bytes")


def against_lora(kind: str) -> list[Comparison]:
    """A kind of adapter against LoRA, over everything, then over the MLP alone."""
    return [*both("adapters", kind, "lora_r16"), *both("adapters", f"mlp_{kind}", "mlp_lora")]


BUDGETS = (100_000, 300_000, 1_000_000)


def of_cell(cell: str, field: str = "effect") -> list[Comparison]:
    """Of a cell of the frontier: the sides at equal bytes, or at equal FLOPs, too, at every budget."""
    return [("frontier", cell, budget, field) for budget in BUDGETS]


def at_random(place: str) -> list[Comparison]:
    """Of the Parameter Golf block on FineWeb: the best with this place at random, at every budget."""
    return [("frontier", "golf_fineweb", budget, place) for budget in BUDGETS]


P = "progressive"
# How a row, a paragraph or an item of a list begins -> what its effects are, in their order.
QUOTES: Mapping[str, Sequence[Comparison]] = {
    "| GEGLU, books |": of_cell("geglu_gutenberg"),
    "| GEGLU, FineWeb, as chosen on the books |": of_cell("geglu_fineweb"),
    "| Parameter Golf block, FineWeb |": of_cell("golf_fineweb"),
    "| GEGLU, books, same FLOPs |": of_cell("geglu_gutenberg", "effect_at_flops"),
    "| GEGLU, FineWeb, as chosen on the books, same FLOPs |": of_cell("geglu_fineweb", "effect_at_flops"),
    "| Parameter Golf block, FineWeb, same FLOPs |": of_cell("golf_fineweb", "effect_at_flops"),
    "| Parameter Golf block, books, as chosen on FineWeb |": of_cell("golf_gutenberg"),
    "| Parameter Golf block, books, as chosen on FineWeb, same FLOPs |": of_cell("golf_gutenberg", "effect_at_flops"),
    "- **A choice made on one text": [
        *(("frontier", "geglu_fineweb", 300_000, what) for what in ("effect", "gate_up", "mlp")),
        *(("frontier", "golf_gutenberg", 100_000, what) for what in ("effect", "gate_up")),
    ],
    "- **Which part tolerates random?**": of_cell("golf_gutenberg", "mlp"),
    "| gate and up |": at_random("gate_up"),
    "| whole MLP |": at_random("mlp"),
    "| queries and keys |": at_random("qk"),
    "| attention |": at_random("attention"),
    "| everything |": at_random("everything"),
    "| selective 8L 256d beats the baseline 6L 192d | FineWeb": [(P, "fineweb", "selective_medium", "baseline")],
    "| | books | -1.5 %": [(P, "gutenberg", "selective_medium", "baseline")],
    "| progressive 8L 256d beats the baseline | FineWeb": [(P, "fineweb", "progressive_medium", "baseline")],
    "| progressive 8L 256d loses to the baseline | books": [(P, "gutenberg", "progressive_medium", "baseline")],
    "| progressive 12L 384d beats the baseline | FineWeb": [(P, "fineweb", "progressive_large", "baseline")],
    "| progressive beats selective at the same size": [(P, "fineweb", "progressive_medium", "selective_medium")],
    "| progressive loses to selective at the same size": [(P, "gutenberg", "progressive_medium", "selective_medium")],
    "- **The initial scale.**": both(P, "baseline_same_scale", "baseline"),
    "- **At the same size and initial scale, freezing costs.**": [
        *both(P, "selective_medium", "trained_medium_same_scale"),
        *both(P, "progressive_medium_same_scale", "trained_medium_same_scale"),
    ],
    "- **Trained against random frozen weights**": both(P, "progressive_medium_same_scale", "selective_medium"),
    "- **At the same stored bytes**, against a smaller model": both(
        P, "selective_medium", "trained_at_selective_bytes_same_scale"
    ),
    "- **Restarting the learning rate**": [
        *both(P, "progressive_medium_rate_restart", "progressive_medium"),
        *both(P, "progressive_medium_full_restart", "progressive_medium"),
    ],
    "- **Dropout 0.2 on both sides**": [
        *both(P, "selective_medium_dropout", "trained_medium_dropout_same_scale"),
        *both(P, "progressive_medium_dropout", "trained_medium_dropout"),
    ],
    "| gate and up frozen, 6L 192d | baseline |": of_paper("selective_small", "baseline"),
    "| ... with dropout | baseline_dropout |": of_paper("selective_small_dropout", "baseline_dropout"),
    "| gate and up frozen, 8L 256d |": of_paper("selective_medium", "baseline_dropout"),
    "| gate and up frozen with dropout, 12L 384d |": of_paper("selective_large_dropout", "baseline_dropout"),
    "| trained, 12L 384d | baseline_dropout |": of_paper("trained_large", "baseline_dropout"),
    "| everything frozen, LoRA of rank 16, 6L 192d |": of_paper("full_freeze_lora", "baseline"),
    "| frozen against trained, 12L 384d |": of_paper("selective_large_dropout", "trained_large"),
    "| the same model trained, small |": both("selective", "selective_small", "baseline_same_maps"),
    "| medium |": both("selective", "selective_medium", "trained_medium_same_maps"),
    "| large |": both("selective", "selective_large", "trained_large_same_maps"),
    "| small, dropout on both sides |": both("selective", "selective_small_dropout", "baseline_dropout_same_maps"),
    "| large, dropout on both sides |": both("selective", "selective_large_dropout", "trained_large_dropout_same_maps"),
    "| a model trained whole that stores the same bytes (medium) |": both(
        "selective", "selective_medium", "trained_at_selective_bytes_same_maps"
    ),
    "| a model trained whole whose step takes the same FLOPs (medium) |": both(
        "selective", "selective_medium", "trained_at_selective_step_same_maps"
    ),
    "| *trained from the maps against trained": both("selective", "baseline_same_maps", "baseline"),
    "| MLP down |": placed("down", "baseline"),
    **{f"| attention {place} |": placed(place, "baseline") for place in ("q", "k", "v", "out")},
    "| all matrices of the first half of the layers |": placed("first_half", "trained_medium_same_maps"),
    "| of the second half |": placed("second_half", "trained_medium_same_maps"),
    **{
        f"| {kind} |": both("selective", f"selective_small_{kind}", "selective_small")
        for kind in ("rademacher", "uniform", "hadamard", "normal_f32", "orthogonal_qr", "gain")
    },
    "| everything at random, no adapter |": at_its_bytes("frozen"),
    "| everything at random, LoRA of rank 1 |": at_its_bytes("lora_r1"),
    "| everything at random, LoRA of rank 4 |": at_its_bytes("lora_r4"),
    "| everything at random, LoRA of rank 16 |": at_its_bytes("lora_r16"),
    "| everything at random, LoRA of rank 64 |": at_its_bytes("pr_1549"),
    "| everything at random, DoRA |": at_its_bytes("dora"),
    "| everything at random, a gain per feature |": at_its_bytes("gain"),
    "| everything at random, VeRA |": at_its_bytes("vera"),
    "| everything at random, RandLoRA |": at_its_bytes("randlora"),
    "| everything under a trained mask (as PR 1753) |": at_its_bytes("pr_1753"),
    "| the MLP, LoRA of rank 16 |": at_its_bytes("mlp_lora"),
    "| the MLP, LoRA (as PR 2058) |": at_its_bytes("pr_2058"),
    "| attention, LoRA (as PR 974) |": at_its_bytes("pr_974"),
    "| up of the first layers, a gain (as PR 1228) |": at_its_bytes("pr_1228"),
    "| gate and up, middle blocks run twice (as PR 1710) |": at_its_bytes("pr_1710"),
    "| no adapter |": both("adapters", "frozen", "trained_same_maps"),
    "| LoRA of rank 1 |": both("adapters", "lora_r1", "trained_same_maps"),
    "| LoRA of rank 4 |": both("adapters", "lora_r4", "trained_same_maps"),
    "| LoRA of rank 16 |": both("adapters", "lora_r16", "trained_same_maps"),
    "| LoRA of rank 64 |": both("adapters", "pr_1549", "trained_same_maps"),
    "| the MLP alone, no adapter |": both("adapters", "frozen_mlp", "trained_mlp_same_maps"),
    "| the MLP alone, LoRA of rank 16 |": both("adapters", "mlp_lora", "trained_mlp_same_maps"),
    "| DoRA |": against_lora("dora"),
    "| LoRA and a learned scale |": against_lora("scalar_lora"),
    "| LoRA, rank-stabilised |": against_lora("rank_stabilised"),
    "| a gain per feature |": against_lora("gain"),
    "| VeRA |": against_lora("vera"),
    "| RandLoRA |": against_lora("randlora"),
    **{
        f"| {name} maps under LoRA |": both("adapters", f"lora_{name}", "lora_r16")
        for name in ("rademacher", "uniform", "hadamard", "orthogonal_qr")
    },
    "- **Random and frozen costs a little.**": both("selective", "selective_small", "baseline_same_maps"),
    "- **The paper's gain is its initial scale.**": both("selective", "baseline_same_maps", "baseline"),
    "- **At the same stored bytes it pays": both(
        "selective", "selective_medium", "trained_at_selective_bytes_same_maps"
    ),
    "- **The distribution does not matter.**": both("selective", "selective_small_rademacher", "selective_small"),
    "- **Freezing everything, with LoRA of rank 16": both("selective", "full_freeze_lora", "baseline"),
    "- **At the same stored bytes** freezing is ahead": both(
        "selective", "selective_medium", "trained_at_selective_bytes_same_maps"
    ),
    # of correction, distillation and ensembles
    "| frozen MLP, no correction, against trained |": both("correction", "frozen_mlp", "trained_same_maps"),
    "| a correction of rank 32 beside it |": both("correction", "gelu_r32", "trained_same_maps"),
    "| a correction of rank 64 |": both("correction", "gelu_r64", "trained_same_maps"),
    "| a correction of rank 128 |": both("correction", "gelu_r128", "trained_same_maps"),
    "| rank 64 against no correction |": both("correction", "gelu_r64", "frozen_mlp"),
    "| rank 64 against LoRA of as many numbers |": both("correction", "gelu_r64", "lora_as_r64"),
    "| rank 64 against the correction without an MLP |": both("correction", "gelu_r64", "gelu_r64_alone"),
    "| rank 64, linear as the text has it, against the script's |": both("correction", "linear_r64", "gelu_r64"),
    "| correction of rank 32 |": both("correction", "gelu_r32", "trained_at_r32_bytes"),
    "| correction of rank 64 |": both("correction", "gelu_r64", "trained_at_r64_bytes"),
    "| correction of rank 128 |": both("correction", "gelu_r128", "trained_at_r128_bytes"),
    "| correction of rank 64, large |": both("correction", "large_gelu_r64", "trained_at_large_r64_bytes"),
    "| frozen MLP and a correction of rank 32, small |": [("correction", "gutenberg", "gelu_r32", "baseline")],
    "| frozen MLP and a correction of rank 64, small |": [("correction", "gutenberg", "gelu_r64", "baseline")],
    "| frozen MLP and a correction of rank 128, small |": [("correction", "gutenberg", "gelu_r128", "baseline")],
    "| frozen MLP and a correction of rank 64, large |": [("correction", "gutenberg", "large_gelu_r64", "baseline")],
    "| a frozen student, in the same steps |": both("distillation", "student_distilled", "student_text"),
    "| a frozen student, against the teacher's steps on the student |": both(
        "distillation", "student_distilled", "selective_medium"
    ),
    "| a student that trains whole, in the same steps |": both(
        "distillation", "student_trained_distilled", "student_trained_text"
    ),
    "| a teacher of the student's size, in the same steps |": both(
        "distillation", "student_of_its_architecture", "student_text"
    ),
    "| oneself as the teacher, in the same chain of runs |": both("distillation", "chain_distilled", "chain_text"),
    "| a larger teacher, in the same steps |": both("distillation", "small_of_large", "baseline"),
    "| a larger teacher, against twice the steps without |": both("distillation", "small_of_large", "baseline_twice"),
    "| that teacher without the text |": both("distillation", "small_of_large_share_1", "small_of_large"),
    "| temperature 1 instead of 2 |": both("distillation", "small_of_large_temperature_1", "small_of_large"),
    "| temperature 4 instead of 2 |": both("distillation", "small_of_large_temperature_4", "small_of_large"),
    "| frozen against trained, same maps, same teacher |": both(
        "distillation", "student_distilled", "student_trained_distilled"
    ),
    "| frozen student against a model trained whole, same bytes and steps |": both(
        "distillation", "student_distilled", "trained_at_student_bytes"
    ),
    "| the last third frozen against never |": both("distillation", "chain_distilled", "chain_never_frozen"),
    "| the chain against one run that trains whole, same bytes |": both(
        "distillation", "chain_distilled", "trained_medium"
    ),
    "| a small teacher, then a larger frozen student |": [
        ("distillation", "gutenberg", "student_distilled", "baseline")
    ],
    "| that student against random maps alone |": [
        ("distillation", "gutenberg", "student_distilled", "selective_medium")
    ],
    "| train, learn from oneself, freeze |": [("distillation", "gutenberg", "chain_distilled", "baseline")],
    "| that chain against freezing at a third |": [
        ("distillation", "gutenberg", "chain_distilled", "progressive_medium")
    ],
    "| two half models against a whole one, as the paper compares |": both("ensemble", "two_halves", "baseline"),
    "| two half models against one of them |": both("ensemble", "two_halves", "half"),
    "| two half models against one of their bytes |": both("ensemble", "two_halves", "one_at_halves_bytes"),
    "| ... that sees as many tokens as both |": both("ensemble", "two_halves", "one_at_halves_bytes_both_steps"),
    "| a trained and a frozen model against the trained one |": both("ensemble", "trained_and_frozen", "baseline"),
    "| a trained and a frozen one against two trained |": both("ensemble", "trained_and_frozen", "trained_and_trained"),
    "| a trained and a frozen one against one of their bytes |": both(
        "ensemble", "trained_and_frozen", "one_at_mixed_bytes"
    ),
    "| ... on as many tokens as both |": both("ensemble", "trained_and_frozen", "one_at_mixed_bytes_both_steps"),
    "| two half models, mean of probabilities against that of logits |": both(
        "ensemble", "two_halves_probabilities", "two_halves"
    ),
    "| two half models, learned weights against equal ones |": both("ensemble", "two_halves_weighted", "two_halves"),
    "| two models, against one: two half models (as its text says) |": [
        ("ensemble", "gutenberg", "two_halves", "baseline")
    ],
    "| two models, against one: a trained and a frozen one (as its script does) |": [
        ("ensemble", "gutenberg", "trained_and_frozen", "baseline")
    ],
}
