"""Preference records and any causal language model: align it with DPO + SIRIUS.

Run: python examples/own_records.py MODEL   (a Hugging Face id or a local folder)
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sirius_rec import SiriusConfig, SiriusTrainer

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
records = [  # or a Hugging Face data set
    {"prompt": "Liked: Air, Moby. Next: ", "chosen": "Röyksopp", "rejected": ["Slayer", "Dolly Parton", "Bach"]},
    {"prompt": "Liked: Slayer, Anthrax. Next: ", "chosen": "Metallica", "rejected": ["Air", "Enya", "Bach"]},
]
args = SiriusConfig(output_dir="aligned", loss="softmax_dpo_sirius", negatives=2, num_train_epochs=1)
trainer = SiriusTrainer(model, args=args, train_dataset=records, processing_class=tokenizer)
trainer.train()
trainer.save_model("aligned/final")
