"""BERT, RoBERTa and ELECTRA: their published configurations, and small ones."""

# The published config.json files, without version names and the like.
COMMON = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}
BERT = {
    **COMMON,
    "architectures": ["BertForMaskedLM"],
    "gradient_checkpointing": False,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "type_vocab_size": 2,
    "use_cache": True,
    "vocab_size": 30522,
}
ROBERTA = {
    **COMMON,
    "architectures": ["RobertaForMaskedLM"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "roberta",
    "pad_token_id": 1,
    "type_vocab_size": 1,
    "vocab_size": 50265,
}
ELECTRA = {
    **COMMON,
    "architectures": ["ElectraForPreTraining"],
    "embedding_size": 768,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "electra",
    "summary_activation": "gelu",
    "summary_last_dropout": 0.1,
    "summary_type": "first",
    "summary_use_proj": True,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
ELECTRA_SMALL = {"hidden_size": 256, "embedding_size": 128, "num_attention_heads": 4, "intermediate_size": 1024}
# Parameters of the backbone without the pooler: transformers' on the meta device.
PUBLISHED = {
    "bert-base-uncased": (BERT, 108_891_648),
    "roberta-base": (ROBERTA, 124_055_040),
    "electra-base-discriminator": (ELECTRA, 108_891_648),
    "electra-small-discriminator": ({**ELECTRA, **ELECTRA_SMALL}, 13_483_008),
}
TINY = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 42,
}
SMALL = {
    "bert": {**BERT, **TINY},
    "roberta": {**ROBERTA, **TINY},
    "electra": {**ELECTRA, **TINY, "embedding_size": 16},
}
