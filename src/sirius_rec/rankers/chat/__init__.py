"""ChatRec: any OpenAI-compatible chat endpoint as a ranker."""
