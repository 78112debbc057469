"""The 69 rows of the source documents' tables: what each says, and where ours is measured.

The documents are papers 62 to 64, a pull request of Parameter Golf and the freeze-except ablation. A row is a line of a
table of theirs; its figures are quoted as they stand there.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """A line of a table, its figures, and where ours are."""

    name: str
    says: str
    # A row of a summary, STUDY/TEXT:VARIANT (with >REFERENCE: against that), or the claims of a claims.json or
    # forgetting.json, FILE#WORDS: those with these words in what they claim.
    ours: tuple[str, ...]


class Table(NamedTuple):
    """A table of a source."""

    title: str
    rows: tuple[Row, ...]


def _of(where: str, *rows: tuple[str, ...]) -> tuple[Row, ...]:
    return tuple(
        Row(name, says, tuple(at if "/" in at else f"{where}:{at}" for at in ours)) for name, says, *ours in rows
    )


def _sized(name: str) -> str:
    return f"artifact_size/claims.json#{name}, "


def _matrices(study: str, *rows: tuple[str, str, str]) -> tuple[Row, ...]:
    return tuple(Row(name, says, (f"{study}/python/claims.json#of {matrix}:",)) for name, says, matrix in rows)


def _except(*rows: tuple[str, float, float, int, int]) -> tuple[Row, ...]:
    said = "{:.1f} % ({:+.1f} points), deduce {}, guess {} %"
    return tuple(
        Row(f"{name} alone", said.format(*figures), (f"freeze_except/puzzles/forgetting_power.json#{name} alone",))
        for name, *figures in rows
    )


TABLES = (
    Table(
        "PR 1301, section 2: gate and up at random, FineWeb, 1,024 tokens",
        _of(
            "selective/fineweb",
            ("baseline 6L 192d, dropout 0.2", "CE 3.2531, 2.4 MB", "baseline_dropout", _sized("Baseline 6L 192d")),
            ("baseline 6L 192d, first version", "CE 3.4816", "baseline"),
            ("baseline 6L 192d, dropout 0.1, first version", "CE 3.3651"),
            ("everything at random with LoRA 16", "gap of 80.0 %", "full_freeze_lora"),
            ("frozen 6L 192d", "CE 3.3838, -2.8 %, 1.5 MB", "selective_small", _sized("Selective 6L 192d")),
            ("frozen 6L 192d, dropout 0.2", "CE 3.4404, +5.8 %, 1.5 MB", "selective_small_dropout"),
            ("frozen 8L 256d", "CE 3.1427, -3.4 %, 3.3 MB", "selective_medium", _sized("Selective 8L 256d")),
            (
                "frozen 12L 384d, dropout",
                "CE 2.8803, -11.5 %, 7.3 MB",
                "selective_large_dropout",
                _sized("Selective 12L 384d"),
            ),
            ("trained 12L 384d", "CE 2.7295, -16.1 %, 17.7 MB", "trained_large", _sized("Trained 12L 384d")),
        ),
    ),
    Table(
        "PR 1301, section 3: freezing later, FineWeb, 4,096 tokens (ours: 1,024)",
        _of(
            "progressive/fineweb",
            ("baseline 6L 192d", "CE 4.2132", "baseline"),
            ("random 8L 256d", "CE 4.1767, -0.9 %", "selective_medium"),
            ("progressive 8L 256d", "CE 4.1189, -2.2 %", "progressive_medium"),
            ("progressive 12L 384d", "CE 3.8370, -8.9 %", "progressive_large"),
        ),
    ),
    Table(
        "PR 1301, sections 3 and 6: freezing later, books, bytes",
        _of(
            "progressive/gutenberg",
            ("baseline 6L 192d", "CE 1.2957", "baseline"),
            ("random 8L 256d", "CE 1.2757, -1.5 %", "selective_medium"),
            ("progressive 8L 256d", "CE 1.3049, +0.7 %", "progressive_medium"),
            ("progressive 8L 256d with distillation", "CE 1.3013, +0.4 %", "distillation/gutenberg:chain_distilled"),
        ),
    ),
    Table(
        "PR 1301, section 4: low-rank correction, books (baseline CE 1.3011)",
        _of(
            "correction/gutenberg",
            ("rank 32, 6L 192d", "CE 1.4310, +10.0 %", "gelu_r32"),
            ("rank 64, 6L 192d", "CE 1.4075, +8.2 %", "gelu_r64"),
            ("rank 128, 6L 192d", "CE 1.3823, +6.2 %", "gelu_r128"),
            ("rank 64, 12L 384d", "CE 1.3041, +0.23 %", "large_gelu_r64"),
        ),
    ),
    Table(
        "PR 1301, sections 5 and 6: self-distillation, books",
        _of(
            "distillation/gutenberg",
            ("teacher 6L 192d, frozen student 8L 256d", "CE 1.3451, +3.8 %", "student_distilled"),
            ("train, distill, freeze, 1,000 steps each", "CE 1.3013, +0.4 %", "chain_distilled"),
        ),
    ),
    Table(
        "PR 1301, section 7: two models, books",
        _of(
            "ensemble/gutenberg",
            ("one 6L 192d", "1.9797 bits per character", "baseline"),
            ("two together", "1.7660 bits per character", "two_halves", "trained_and_frozen"),
        ),
    ),
    Table(
        "PR 1301, section 9: files",
        _of(
            "",
            ("standard 11L 512d", "34.4 M, 34.4 M learned, 15.9 MB", _sized("Standard 11L 512d")),
            ("selective 11L 512d", "34.4 M, 21.7 M learned, 10.0 MB", _sized("Selective 11L 512d")),
            ("selective 13L 512d", "40.2 M, 26.5 M learned, 12.2 MB", _sized("Selective 13L 512d")),
        ),
    ),
    Table(
        "Paper 62: amplitudes of a matrix's rows",
        _matrices(
            "amplitude",
            ("L0 c_attn", "PR 2.95, PC1 53.9 %, correlation 0.742, kurtosis 89.0", "L0_attn_c_attn"),
            ("L3 c_attn", "PR 2.84, PC1 53.3 %, correlation 0.734, kurtosis 150.9", "L3_attn_c_attn"),
            ("L4 c_proj", "PR 1.03, PC1 98.5 %, correlation 0.997, kurtosis 246.4", "L4_attn_c_proj"),
            ("L5 c_proj", "PR 3.41, PC1 48.8 %, correlation 0.810, kurtosis 56.7", "L5_attn_c_proj"),
            ("L7 c_proj", "PR 6.18, PC1 25.8 %, correlation 0.424, kurtosis 1.3", "L7_attn_c_proj"),
        ),
    ),
    Table(
        "Paper 63: L4 c_proj replaced and frozen, 50 steps",
        _of(
            "crystallization/python",
            ("everything trained", "loss 2.2266", "full"),
            ("frozen as trained", "loss 2.2211, -0.2 %", "kept_L4_attn_c_proj"),
            ("its rank 1", "loss 2.2261, 0.0 %", "rank_1_L4_attn_c_proj"),
            ("random", "loss 2.1907, -1.6 %", "random_L4_attn_c_proj"),
        ),
    ),
    Table(
        "Paper 63: participation ratio of the weights",
        tuple(
            Row(
                f"L{layer}",
                f"c_attn {attn}, c_proj {proj} (PC1 {first} %)",
                tuple(f"crystallization/python/claims.json#of L{layer}_attn_{name}:" for name in ("c_attn", "c_proj")),
            )
            for layer, attn, proj, first in (
                (0, 202.7, 145.3, 12.0),
                (3, 198.6, 75.8, 21.7),
                (4, 196.8, 84.5, 22.4),
                (6, 205.4, 86.6, 29.6),
                (7, 205.9, 94.9, 36.6),
            )
        ),
    ),
    Table(
        "Paper 64: one c_proj frozen, 50 steps",
        _of(
            "redundancy/python",
            ("L1", "-0.02 %", "L1_attn_c_proj"),
            ("L4", "-0.20 %", "L4_attn_c_proj"),
            ("L6", "-0.32 %", "L6_attn_c_proj"),
            ("L7", "-0.29 %", "L7_attn_c_proj"),
            ("L0", "+0.60 %", "L0_attn_c_proj"),
            ("L3", "+0.89 %", "L3_attn_c_proj"),
        ),
    ),
    Table(
        "Paper 64: groups frozen",
        _of(
            "redundancy/python",
            ("all c_proj", "+5.3 %, of 5.2 % of the parameters", "all_attn_c_proj"),
            ("c_proj and c_attn", "+15.2 %, of 20.7 %", "attention_matrices"),
            ("all attention", "+15.9 %, of 20.7 %", "attention"),
            ("attention and MLP", "+79.3 %, of 62.1 %", "matrices"),
            ("all but embeddings", "+81.2 %, of 62.2 %", "blocks"),
            ("all but lm_head (which is tied)", "+165.8 %, of 100.0 %", "everything"),
        ),
    ),
    Table(
        "Paper 64: layers frozen from the bottom",
        _of(
            "redundancy/python",
            ("none", "loss 2.22, -0.6 %", "full"),
            ("1", "loss 2.47, +10.6 %", "bottom_1"),
            ("2", "loss 2.77, +23.8 %", "bottom_2"),
            ("4", "loss 3.14, +40.4 %", "bottom_4"),
            ("8", "loss 4.02, +79.9 %", "bottom_8"),
        ),
    ),
    Table(
        "Freeze-except ablation: one type of module fine-tuned (base 68.0 %, deduce 8, guess 6 %)",
        _except(
            ("shared_experts", 68.0, 0.0, 8, 6),
            ("out_proj", 68.0, 0.0, 8, 6),
            ("lm_head", 67.6, -0.4, 8, 6),
            ("v_proj", 65.1, -2.9, 0, 0),
            ("q_proj", 57.6, -10.4, 0, 2),
            ("down_proj", 32.4, -35.6, 0, 0),
            ("up_proj", 32.2, -35.8, 0, 0),
            ("in_proj", 29.6, -38.4, 0, 0),
            ("o_proj", 25.1, -42.9, 0, 0),
            ("all", 27.1, -40.9, 2, 0),
        ),
    ),
)
