"""Freeze everything but one type of module of a hybrid model: what is gained on one task, what is forgotten elsewhere.

    uv run python -m experiments.freeze_except --config=experiments/configs/freeze_except.py:tiny --workdir=DIR

Scales (after the colon):

  tiny  4 blocks of width 64, a few puzzles: under 2 minutes on 2 CPU cores. Shows that everything works; its base knows
        little, so that there is little to forget.
  cpu   8 blocks of width 128, 50 test puzzles of each of nine families, 3 seeds. Each base answers two thirds of
        them, after 13 minutes on one core; all takes about two hours on one core.
  h100  24 blocks of width 2048, 16 experts: about 1 B parameters; 500 test puzzles of each family.
  pod   52 blocks of width 2688, 128 experts: about 30 B parameters on 256 chips, by preflight (docs/preflight.md).

--config.base.path=FOLDER takes a model of yours in Hugging Face's layout, --config.puzzles.path=FOLDER your puzzles:
train.jsonl (what the base may learn), target.jsonl (what is fine-tuned on) and test.jsonl, one object with `family`,
`prompt` and `answer` a line. What is not set here is as in experiments/configs/progressive.py.
"""

from ml_collections import ConfigDict

from experiments.configs import progressive

_SCALES = ("tiny", "cpu", "h100", "pod")
# Of the source, in its order.
_ROWS = "shared_experts,out_proj,lm_head,v_proj,q_proj,down_proj,up_proj,in_proj,o_proj"


def get_config(scale: str = "cpu") -> ConfigDict:
    """Config of one scale; every field may be set as --config.FIELD=VALUE."""
    progressive.check_scale(scale, _SCALES)
    tiny, large = scale == "tiny", scale in ("h100", "pod")
    config = progressive.get_config("h100" if large else scale)
    config.scale = scale
    config.experiment = "freeze_except"
    config.seeds = 1 if tiny else 3
    config.base_seeds = 1
    config.paper = "none"  # the source's claims are judged in forgetting.md
    for field in ("sizes", "freeze", "model"):
        del config[field]
    config.base = ConfigDict({"path": ""})  # a model of yours; empty: one is trained as said here
    config.dropout = 0.0  # while fine-tuning a model of yours
    config.model = _model(scale)
    config.puzzles = ConfigDict()
    config.puzzles.path = ""  # a folder of yours; empty: they are drawn
    config.puzzles.level = 3 if large else 1  # how hard: 1 to 3
    config.puzzles.examples = 4  # shown in each
    config.puzzles.train = 200 if tiny else 20_000  # of each family that the base learns
    config.puzzles.seen = 10 if tiny else 1_000  # of each family of the target that the base has seen, too
    config.puzzles.test = 4 if tiny else 500 if large else 50  # of each family
    # Drawn test puzzles of each family that the single types are scored on once more; 0: not. 500 are 4,500 in all.
    config.puzzles.power = 0 if tiny or large else 500
    config.puzzles.target = "cryptarithm_deduce,cryptarithm_guess"  # what is fine-tuned on, hardly in the base
    config.puzzles.shown = True  # the base learns the answers of the examples, too
    config.puzzles.tune = 40 if tiny else 500  # puzzles of the target, all together
    if not tiny:
        config.data.eval_batch_size = 150  # puzzles
    # One row each, and a last one in which everything trains; of the tiny scale some.
    config.types = "shared_experts,out_proj,q_proj,down_proj" if tiny else _ROWS
    # Rows of several types: names with a space between, rows with a comma.
    config.pairs = "" if tiny else "shared_experts out_proj"
    config.longer = 1 if tiny else 4  # also with so many times the steps; 1: not
    config.rates = (1.0,) if tiny else (1.0, 10.0, 50.0)  # also with so many times the learning rate
    config.few = not tiny  # also with as few parameters, chosen at random, as the type with fewest has
    config.mixed = 0.0 if tiny else 0.1  # also with this share of the other families in the batches; 0: not
    config.train.steps = 60 if tiny else 20_000 if large else 3_000  # of the base
    config.train.batch_size = 8 if tiny else 256 if large else 32
    config.train.accumulation = 8 if scale == "h100" else 1  # one H100 holds the activations of 32 puzzles
    config.train.seq_len = 64 if not large else 256
    config.train.eval_every = config.train.checkpoint_every = config.train.steps // 6
    config.train.optimizer.learning_rate = 3e-4 if large else 3e-3
    config.train.optimizer.warmup_steps = config.train.steps // 50
    # Comparing examples is learned late and at once, while the rate is high: it falls in the last third alone.
    config.train.optimizer.schedule = "linear_warmdown"
    config.train.optimizer.warmdown_steps = config.train.steps // 3
    config.tune = ConfigDict()  # instead of what `train` says, while fine-tuning
    config.tune.steps = 10 if tiny else 50  # the source's
    config.tune.batch_size = 8 if tiny else 16
    config.tune.learning_rate = 1e-3 if tiny else 2e-4
    config.tune.schedule = "cosine"
    if scale == "pod":
        _fill_a_pod(config)
    return config


def _fill_a_pod(config: ConfigDict) -> None:
    """30 B parameters, of which 3 B meet a token; 524,288 tokens a step, experts over 8 chips, weights over all."""
    model = config.model
    model.num_layers = 52
    model.pattern = 6 * "MEMEM*E" + 5 * "ME"
    model.model_dim = 2688
    model.num_heads, model.num_kv_heads, model.head_dim = 32, 2, 128
    model.experts, model.expert_choices = 128, 6
    model.expert_width, model.shared_expert_width = 1856, 3712
    config.train.batch_size = 2_048
    config.train.remat = True
    config.train.mesh.data, config.train.mesh.fsdp, config.train.mesh.expert = 1, -1, 8
    config.data.eval_batch_size = config.tune.batch_size = 256


def _model(scale: str) -> ConfigDict:
    tiny, large = scale == "tiny", scale in ("h100", "pod")
    width = 64 if tiny else 2048 if large else 128
    model = ConfigDict({"family": "nemotron_h", "vocab_size": 0})  # 0 = the tokenizer's
    model.num_layers, model.pattern = (4, "ME*-") if tiny else (24, "ME*EMEM-") if large else (8, "MM*EM*-E")
    model.model_dim = width
    model.num_heads, model.num_kv_heads, model.head_dim = (16, 4, 128) if large else (4, 2, width // 4)
    model.mamba_heads, model.mamba_head_dim = (64, 64) if large else (4, width // 2)
    model.mamba_groups, model.state_dim, model.chunk = (8, 128, 128) if large else (2, 32, 64)
    model.mlp_width = 4 * width
    model.experts, model.expert_choices, model.share_scale = (16, 2, 2.5) if large else (8, 2, 1.0)
    model.expert_width, model.shared_expert_width = (width, 2 * width) if large else (width, width)
    return model
