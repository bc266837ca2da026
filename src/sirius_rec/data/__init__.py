"""Events → sequences → examples → frozen slates. No torch, and nothing heavy is imported here.

Entry points: `sirius_rec.data.prepare.prepare` writes a dataset folder, `sirius_rec.data.store.open_dataset` opens one.
"""
