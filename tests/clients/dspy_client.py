"""DSPy: its fine-tuning provider, then a typed predictor on the tuned model."""

from typing import Literal

import dspy
from dspy.clients.utils_finetune import TrainDataFormat
from lines import BASE, Checks, examples

check = Checks()
base = dspy.LM(f"openai/{BASE}", cache=False, max_tokens=200, temperature=0.0)
job = base.finetune(examples(), TrainDataFormat.CHAT, train_kwargs={"n_epochs": 1, "batch_size": 4})
tuned = job.result()
check(isinstance(tuned, dspy.LM), f"the job gave {tuned!r}")
check(tuned.model.startswith((f"ft:{BASE}:", f"openai/ft:{BASE}:")), tuned.model)
check(len(tuned("The harvest was rich.")) == 1, "asked plainly")


class Judge(dspy.Signature):
    """Say whether the sentence is good or bad news."""

    sentence: str = dspy.InputField()
    label: Literal["good", "bad"] = dspy.OutputField()


with dspy.context(lm=tuned, adapter=dspy.JSONAdapter()):
    check(dspy.Predict(Judge)(sentence="Wages rose.").label in ("good", "bad"), "a typed answer")
check.done()
