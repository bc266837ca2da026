"""GRU4Rec, Caser and SASRec: next-item networks over item ids, trained as strongly as the language models are."""
