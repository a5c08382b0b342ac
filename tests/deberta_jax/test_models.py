"""Every model takes the same call arguments, and returns hidden states and attentions on request."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import (
    Deberta,
    DebertaForMaskedLM,
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
    UserError,
)

from ..support.small_models import SMALL, random_params

CONFIG = SMALL.replace(num_hidden_layers=2, type_vocab_size=2, num_labels=3)
ONE_LAYER = CONFIG.replace(num_hidden_layers=1, mlm_head="bert")  # EMD needs two
HEADS = (
    DebertaForMaskedLM,
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
)
B, S, D, N = 2, 15, CONFIG.hidden_size, CONFIG.num_attention_heads
IDS = np.random.default_rng(0).integers(5, 60, (B, S), np.int32)
PACKED = {
    "segment_ids": np.repeat([[1, 2, 0]], [6, 7, 2], axis=1).repeat(B, axis=0),
    "token_type_ids": (IDS % 2).astype(np.int32),
    "position_ids": np.random.default_rng(1).integers(0, 64, (B, S), np.int32),
}
LOGITS = {  # shapes of HeadOutput.logits
    DebertaForMaskedLM: (B, S, CONFIG.vocab_size),
    DebertaForMultipleChoice: (1, B),
    DebertaForReplacedTokenDetection: (B, S),
    DebertaForSequenceClassification: (B, 3),
    DebertaForTokenClassification: (B, S, 3),
}


def choices(model_class: type, argument: Any) -> Any:
    """Gives an array for multiple choice an axis for the choices, [B, S] -> [1, C, S]."""
    is_array = isinstance(argument, np.ndarray)
    return argument[None] if is_array and model_class is DebertaForMultipleChoice else argument


def shaped(model_class: type, arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: choices(model_class, argument) for name, argument in arguments.items()}


def test_hidden_states_and_attentions_equal_those_of_the_encoder() -> None:
    encoder = random_params(Deberta(ONE_LAYER), IDS)
    params = {head: {**random_params(head(ONE_LAYER), choices(head, IDS)), "deberta": encoder} for head in HEADS}
    options = {**PACKED, "output_hidden_states": True, "output_attentions": True}

    @jax.jit
    def run(encoder, heads):
        outputs = [
            head(ONE_LAYER).apply({"params": tree}, **shaped(head, {"input_ids": IDS, **options}))
            for head, tree in zip(HEADS, heads, strict=True)
        ]
        return Deberta(ONE_LAYER).apply({"params": encoder}, IDS, **options), outputs

    want, outputs = run(encoder, list(params.values()))
    assert [states.shape for states in want.hidden_states] == [(B, S, D)] * 2
    assert [probabilities.shape for probabilities in want.attentions] == [(B, N, S, S)]
    np.testing.assert_array_equal(want.hidden_states[-1], want.last_hidden_state)
    for head, out in zip(HEADS, outputs, strict=True):
        got = [*out.hidden_states, *out.attentions]
        for array, expected in zip(got, [*want.hidden_states, *want.attentions], strict=True):
            shape = choices(head, np.asarray(expected)).shape
            assert array.shape == shape
            np.testing.assert_allclose(array.reshape(expected.shape), expected, atol=1e-5, err_msg=head.__name__)
    spans = outputs[HEADS.index(DebertaForQuestionAnswering)]
    head = params[DebertaForQuestionAnswering]["span_classifier"]
    expected = want.last_hidden_state @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(spans.start_logits, expected[..., 0], atol=1e-5)
    np.testing.assert_allclose(spans.end_logits, expected[..., 1], atol=1e-5)


@pytest.mark.parametrize("model_class", [Deberta, *HEADS])
def test_every_model_takes_every_argument(model_class: type) -> None:
    model = model_class(CONFIG)
    mask, segments = {"attention_mask": np.ones_like(IDS)}, {"segment_ids": PACKED["segment_ids"]}
    ids = shaped(model_class, {"input_ids": IDS})
    shapes = jax.eval_shape(model.init, jax.random.key(0), **ids)
    rngs = {"dropout": jax.random.key(0)}
    calls = [
        {**mask},
        {**segments, "token_type_ids": PACKED["token_type_ids"], "position_ids": PACKED["position_ids"]},
        {**mask, "train": True, "output_hidden_states": True},
        {**mask, "output_attentions": True},
    ]
    for arguments in calls:
        options = ids | shaped(model_class, arguments)
        out = jax.eval_shape(lambda variables, options=options: model.apply(variables, **options, rngs=rngs), shapes)
        if model_class in LOGITS:
            assert out.logits.shape == LOGITS[model_class]
        assert (out.hidden_states is not None) == ("output_hidden_states" in arguments)
        assert (out.attentions is not None) == ("output_attentions" in arguments)
    with pytest.raises(TypeError, match="unexpected keyword argument 'segment_id'"):
        jax.eval_shape(lambda variables: model.apply(variables, **ids, segment_id=IDS), shapes)


def test_packed_row_equals_single_runs() -> None:
    """Attention stays inside a segment, and absolute positions start anew in it.

    Without a request for hidden states the enhanced mask decoder skips the plain last layer, which changes no logits.
    """
    masked_lm, discriminator = DebertaForMaskedLM(CONFIG), DebertaForReplacedTokenDetection(CONFIG)
    first, second, segments = IDS[:1, :6], IDS[:1, 6:], np.array([[1] * 6 + [2] * 9])
    params = random_params(masked_lm, first)
    rtd_params = {**random_params(discriminator, first), "deberta": params["deberta"]}

    @jax.jit
    def run(params, rtd_params):
        def masked(ids, positions, **options):
            return masked_lm.apply({"params": params}, ids, masked_positions=np.array([positions]), **options)

        def replaced(ids, **options):
            return discriminator.apply({"params": rtd_params}, ids, **options).logits

        states = {"output_hidden_states": True, "output_attentions": True}
        encoded = Deberta(CONFIG).apply({"params": params["deberta"]}, IDS[:1], segment_ids=segments, **states)
        out = masked(IDS[:1], [2, 5, 6, 13], segment_ids=segments, **states)
        packed = out.logits, replaced(IDS[:1], segment_ids=segments)
        masked_singles = [masked(first, [2, 5]).logits, masked(second, [0, 7]).logits]
        singles = masked_singles, [replaced(first), replaced(second)]
        return packed, tuple(jnp.concatenate(pair, axis=1) for pair in singles), out, encoded

    packed, single, out, encoded = run(params, rtd_params)
    for packed_logits, single_logits in zip(packed, single, strict=True):
        np.testing.assert_allclose(packed_logits, single_logits, atol=2e-5)
    assert (len(out.hidden_states), len(out.attentions)) == (3, 2)
    np.testing.assert_allclose(out.hidden_states[-1], encoded.last_hidden_state, atol=1e-5)
    np.testing.assert_allclose(out.attentions[-1], encoded.attentions[-1], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 1}, "num_hidden_layers is 1; the enhanced mask decoder needs at least 2"),
        ({"embedding_size": 16}, "embedding_size is 16; the enhanced mask decoder needs hidden_size, 32"),
    ],
)
def test_decoder_rejects_sizes_that_the_plain_head_accepts(changes: dict[str, int], message: str) -> None:
    config = CONFIG.replace(**changes)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(DebertaForMaskedLM(config).init, jax.random.key(0), IDS)
    model = DebertaForMaskedLM(config.replace(mlm_head="bert"))
    assert set(jax.eval_shape(model.init, jax.random.key(0), IDS)["params"]) == {"deberta", "mlm_head"}


def test_bad_shapes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # users do not run with the checks of our tests
    model = Deberta(CONFIG)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS)

    def run(*arguments, **options) -> None:
        jax.eval_shape(lambda variables: model.apply(variables, *arguments, **options), shapes)

    with pytest.raises(ValueError, match=r"input_ids has shape \(15,\); it must be \[batch, sequence\]"):
        run(IDS[0])
    for name in ("attention_mask", "segment_ids", "position_ids"):
        with pytest.raises(ValueError, match=rf"{name} has shape \(2, 3\); it must be that of input_ids, \(2, 15\)"):
            run(IDS, **{name: IDS[:, :3]})
    with pytest.raises(ValueError, match="attention_mask or segment_ids, not both"):
        run(IDS, IDS, segment_ids=IDS)


# ------------------------------------------------------------------------------- parameters that a model does not read


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(
    ("changes", "unread"),
    [
        ({"num_hidden_layers": 1}, "deberta/encoder/layer_1"),
        ({"conv_kernel_size": 0}, "deberta/encoder/conv"),
        ({"type_vocab_size": 0}, "deberta/embeddings/token_type_embeddings"),
        ({"share_att_key": True}, "deberta/encoder/layer_0/attention/pos_key_proj, "),
        ({"relative_attention": False}, "deberta/encoder/rel_embeddings"),
        ({"norm_rel_ebd": "none"}, "deberta/encoder/layer_norm"),
        ({"embedding_size": 32}, "deberta/embeddings/embed_proj"),
        ({"token_projection": False}, "token_proj"),
    ],
)
def test_parameters_that_the_configuration_does_not_have_are_an_error(
    changes: dict[str, Any], unread: str, remat: bool
) -> None:
    """Linen itself would compute something else, without a word."""
    config = CONFIG.replace(
        **{"share_att_key": False, "conv_kernel_size": 3, "embedding_size": 16, "mlm_head": "bert"},
        token_projection=True,
    )
    shapes = jax.eval_shape(DebertaForTokenClassification(config).init, jax.random.key(0), IDS)
    model = DebertaForTokenClassification(config.replace(**changes), remat=remat)
    with pytest.raises(UserError, match=f"the parameters have .*{unread}.*does not read"):
        jax.eval_shape(lambda variables: model.apply(variables, IDS), shapes)
    jax.eval_shape(DebertaForTokenClassification(config, remat=remat).apply, shapes, IDS)


def test_heads_that_a_model_does_not_have_are_an_error() -> None:
    """A classifier on the pooler is none on the tokens, though the shapes are the same."""
    shapes = jax.eval_shape(DebertaForSequenceClassification(CONFIG).init, jax.random.key(0), IDS)
    with pytest.raises(UserError, match="have pooler, which DebertaForTokenClassification does not read"):
        jax.eval_shape(DebertaForTokenClassification(CONFIG).apply, shapes, IDS)
    both = {"params": shapes["params"] | {"rtd_head": shapes["params"]["pooler"]}}
    with pytest.raises(UserError, match="or pass only classifier, deberta, pooler"):
        jax.eval_shape(DebertaForSequenceClassification(CONFIG).apply, both, IDS)
    with pytest.raises(UserError, match="have classifier, deberta, pooler, which Deberta does not read"):
        jax.eval_shape(Deberta(CONFIG).apply, shapes, IDS)


# --------------------------------------------------------------------------------------------- ids outside their table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": np.array([[5, 60]])}, r"input_ids has 60 at \[0, 1\], but its table has the rows 0 to 59"),
        ({"input_ids": np.array([[5, -1]])}, r"input_ids has -1 at \[0, 1\]"),
        ({"input_ids": np.array([[5, 2**32 + 5]])}, r"input_ids has 4294967301 at"),
        ({"token_type_ids": np.array([[0, 2]])}, r"token_type_ids has 2 at \[0, 1\], .* rows 0 to 1"),
        ({"position_ids": np.array([[0, 64]])}, r"position_ids has 64 at \[0, 1\], .* rows 0 to 63"),
        ({"input_ids": np.ones((1, 65), np.int32)}, r"position_ids has 64 at \[0, 64\]"),
    ],
)
def test_ids_outside_their_table(arguments: dict[str, np.ndarray], message: str) -> None:
    """Concrete ids raise an error. Traced ones give NaN in their row, and only there."""
    config = ONE_LAYER.replace(position_biased_input=True)
    arguments = {"input_ids": np.array([[5, 6]]), **arguments}
    params = random_params(Deberta(config), IDS)

    def embed(arguments: dict[str, Any]) -> jax.Array:
        return Deberta(config).apply({"params": params}, **arguments, output_hidden_states=True).hidden_states[0]

    with pytest.raises(UserError, match=message):
        embed(arguments)
    with pytest.raises(UserError, match=message):
        embed({name: jnp.asarray(array) for name, array in arguments.items()} if "2949" not in message else arguments)
    if "2949" not in message:  # JAX itself would cut it to 32 bits
        embedded = np.asarray(jax.jit(embed)(arguments))
        assert np.isnan(embedded[0, -1]).all()
        assert np.isfinite(embedded[0, 0]).all()


def test_ids_of_padding_may_be_anything() -> None:
    config = ONE_LAYER.replace(position_biased_input=True, max_position_embeddings=4, max_relative_positions=64)
    params, mask = random_params(Deberta(config), IDS), np.array([[1, 1, 1, 0, 0, 0]])
    apply = jax.jit(lambda ids: Deberta(config).apply({"params": params}, ids, mask).last_hidden_state)
    outputs = [apply(np.array([[5, 6, 7, *padding]])) for padding in ((0, 0, 0), (-1, 60, 5000))]
    np.testing.assert_array_equal(*outputs)
    assert np.isfinite(outputs[0]).all()
    ids = np.array([[5, 6, 7, -1, 60, 5000]])
    np.testing.assert_allclose(
        Deberta(config).apply({"params": params}, ids, mask).last_hidden_state, outputs[0], atol=1e-5
    )


def test_positions_and_types_count_only_where_they_are_read() -> None:
    one_type = ONE_LAYER.replace(type_vocab_size=1)  # of RoBERTa: every token has the same
    params = random_params(Deberta(one_type), IDS)
    ids = np.full((1, 65), 5)
    want = Deberta(one_type).apply({"params": params}, ids).last_hidden_state  # relative positions only
    got = Deberta(one_type).apply({"params": params}, ids, token_type_ids=np.ones_like(ids)).last_hidden_state
    np.testing.assert_array_equal(got, want)
    mlm = CONFIG.replace(mlm_head="emd")  # the decoder reads absolute positions
    with pytest.raises(UserError, match="position_ids has 64"):
        DebertaForMaskedLM(mlm).apply({"params": random_params(DebertaForMaskedLM(mlm), IDS)}, ids)
