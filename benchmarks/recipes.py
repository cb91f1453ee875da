"""The studies of run.py: of each row its name, what stands after `python train.py`, and the seeds."""

from collections.abc import Sequence

Row = tuple[str, str, Sequence[int]]
PYDOCS: list[Row] = [
    ("default", "", (0, 1, 2)),
    ("from scratch", "model.init=random", (0, 1)),
]

EXPERIMENTS = (
    *("sst2", "sst5", "cfimdb", "ag_news", "cuad_clauses", "unfair_tos", "stsb", "wnut17", "bc5cdr", "ncbi_disease"),
    *("multi30k", "webnlg", "scitldr", "conala", "mbpp", "poems", "wikitext2", "dailydialog", "dailydialog_acts"),
    *("clause_writing", "films_and_names"),
)
TASKS: list[Row] = [
    *((name, f"experiment={name}", (0,)) for name in EXPERIMENTS),
    *(
        (f"{name}, by mini's own tokens", f"experiment={name} model.tokenizer=null", (0,))
        for name in ("sst2", "cfimdb", "ag_news", "unfair_tos")
    ),
    *((f"{name}, from random weights", f"experiment={name} model.init=random", (0,)) for name in ("sst2", "ag_news")),
    ("wnut17, bidirectional", "experiment=wnut17 model.attention=bidirectional", (0,)),
    ("bc5cdr, bidirectional", "experiment=bc5cdr model.attention=bidirectional", (0,)),
]
# Each seed draws other rows; both kinds have the same ones.
FEW = "experiment=sst2 model.tokenizer=null callbacks=default model.dropout=0 data.max_train_rows={} "
FEW += "'data.split_seed=${{seed}}' callbacks.early_stopping=null yardsticks=false trainer.max_epochs=10"
ADAPTED = " init_from=outputs/benchmarks/adaptation-texts-0"
LABELLED_ROWS, ADAPTATION_SEEDS = (200, 1000), range(3)
ADAPTATION: list[Row] = [
    ("texts", "experiment=domain_adaptation", (0,)),
    *((f"{count} rows, as pretrained", FEW.format(count), ADAPTATION_SEEDS) for count in LABELLED_ROWS),
    *((f"{count} rows, adapted", FEW.format(count) + ADAPTED, ADAPTATION_SEEDS) for count in LABELLED_ROWS),
]

FROZEN = "freezing.blocks=4 trainer.max_epochs=3 "
STORE: list[Row] = [
    ("computed each time", f"{FROZEN}store=off", range(5)),
    *(
        (f"stored as {dtype}", f"{FROZEN}store=on store.dtype={dtype}", range(5))
        for dtype in ("float32", "float16", "bfloat16")
    ),
]
