"""A reward model as a reward function: torch's scores for the same texts, whatever the batch, the length, the scale."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from jaxrl_lm.data import Prompt
from jaxrl_lm.errors import InputError
from jaxrl_lm.models.reward_heads import RewardScale
from jaxrl_lm.rewards import load_reward as load_by_name
from jaxrl_lm.rewards import score_completions
from jaxrl_lm.rewards.learned import load_reward
from jaxrl_lm.training.reward_model.labels import LabelledRow, tokenise
from tests.byte_model import write_byte_model
from tests.rewards.reward_folders import CONTEXT, write_chat_decoder, write_decoder, write_encoder

PROMPTS = ["a b", "the c", "d", "a b c d e"]
COMPLETIONS = ["good end", "bad", "long long long the end", "a"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("rewards")
    write_decoder(root / "decoder")
    write_encoder(root / "encoder")
    return {name: root / name for name in ("decoder", "encoder")}


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def folder(request, folders):
    return folders[request.param]


@pytest.fixture(scope="module")
def reward(folder):
    return load_reward(folder, batch_size=3)


def torch_scores(folder, prompts, completions):
    """Scores by Hugging Face's classes alone, one row at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").float().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        texts = (prompt, completion) if "encoder" in folder.name else (prompt + completion,)
        with torch.no_grad():
            scores.append(float(model(**tokenizer(*texts, return_tensors="pt")).logits[0, 0]))
    return scores


def test_scores_are_those_of_torch(folder, reward):
    expected = torch_scores(folder, PROMPTS, COMPLETIONS)
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(reward(PROMPTS, COMPLETIONS), expected, rtol=0, atol=1e-5)


def test_padded_batches_of_torch_give_the_same_scores(folder, reward):
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").float().eval()
    rows = [reward.reader.encode(*each) for each in zip(PROMPTS, COMPLETIONS, strict=True)]
    inputs = reward.reader.stack(rows, 32)
    if "decoder" in folder.name:
        del inputs["token_type_ids"]
    with torch.no_grad():
        expected = model(**{name: torch.tensor(array).long() for name, array in inputs.items()}).logits[:, 0].numpy()
    np.testing.assert_allclose(reward(PROMPTS, COMPLETIONS), expected, rtol=0, atol=1e-5)


def test_score_does_not_depend_on_the_batch(folder, reward):
    whole = reward(PROMPTS, COMPLETIONS)
    alone = [reward([prompt], [completion])[0] for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    large = load_reward(folder, batch_size=8)(PROMPTS[::-1], COMPLETIONS[::-1])[::-1]
    np.testing.assert_allclose(alone, whole, rtol=0, atol=1e-5)
    np.testing.assert_allclose(large, whole, rtol=0, atol=1e-5)


def test_both_prompt_and_answer_change_the_score(reward):
    first, other_prompt, other_answer = reward(["a", "b", "a"], ["good", "good", "bad"])
    assert abs(first - other_prompt) > 1e-3
    assert abs(first - other_answer) > 1e-3


def test_empty_answers_and_prompts_have_a_score(reward):
    scores = reward(["a b", "", "a b", ""], ["", "good", " \n", ""])
    assert np.all(np.isfinite(scores))


def test_too_long_prompt_loses_its_beginning(reward):
    answer = "good end"
    long_prompt = "c " * CONTEXT + "a b"
    row = reward.reader.encode(long_prompt, answer)
    assert row.is_cut
    assert len(row.ids) == CONTEXT
    assert row.ids[-3:] == reward.reader.encode("a b", answer).ids[-3:]
    assert reward(["e " + long_prompt], [answer]) == reward([long_prompt], [answer])
    assert not reward.reader.encode("a b", answer).is_cut


def test_too_long_answer_is_still_scored(reward):
    assert np.isfinite(reward(["a b"], ["good " * CONTEXT])[0])


def test_max_tokens_limits_the_row(folder):
    reward = load_reward(folder, max_tokens=8)
    assert len(reward.reader.encode("a b c d e a b c d e", "good bad").ids) == 8
    for wrong in (CONTEXT + 1, 3):
        with pytest.raises(InputError, match=f"max_tokens={wrong}"):
            load_reward(folder, max_tokens=wrong)


def test_a_folder_that_others_made_is_read_in_its_whole_context(reward):
    assert reward.reader.max_tokens == CONTEXT


def test_the_limit_of_training_must_fit_the_model(tmp_path):
    write_decoder(tmp_path / "scaled", scale=RewardScale(max_tokens=CONTEXT + 1))
    with pytest.raises(InputError, match=f"max_tokens={CONTEXT + 1}"):
        load_reward(tmp_path / "scaled")


def test_widths_are_few_and_hold_the_tokens(reward):
    widths = {n: reward.reader.width(n) for n in range(1, CONTEXT + 1)}
    assert all(width >= n for n, width in widths.items())
    assert set(widths.values()) == {16, 24, 32}


def test_conversations_are_scored_by_the_encoder_as_their_text(folders):
    reward = load_reward(folders["encoder"])
    plain = reward(["a b"], ["good"])
    turns = reward([[{"role": "user", "content": "a b"}]], [[{"role": "assistant", "content": "good"}]])
    assert turns == plain


@pytest.mark.parametrize("is_pad_in_config", [True, False])
@pytest.mark.parametrize("end", ["<|endoftext|>", "<|endoftext|>\n", "[/turn]\n"])
def test_conversations_are_scored_as_torch_scores_the_rendered_template(tmp_path, end, is_pad_in_config):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content + " + json.dumps(end) + " }}{% endfor %}"
    write_chat_decoder(tmp_path / "llama", template=template, is_pad_in_config=is_pad_in_config)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "llama", attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "llama")
    prompts = [[{"role": "user", "content": "hi"}], [{"role": "user", "content": "a longer one"}]] * 2
    answers = [[{"role": "assistant", "content": text}] for text in ("ok", "no", "yes indeed", "")]
    expected = []
    for prompt, answer in zip(prompts, answers, strict=True):
        assert tokenizer.apply_chat_template(prompt + answer, tokenize=False).endswith(end)
        ids = tokenizer.apply_chat_template(prompt + answer, return_dict=False)
        with torch.no_grad():
            expected.append(float(model(torch.tensor([ids])).logits[0, 0]))
    assert np.std(expected) > 0.02
    reward = load_reward(tmp_path / "llama", batch_size=3)
    np.testing.assert_allclose(reward(prompts, answers), expected, rtol=0, atol=1e-5)
    # As the rows of training, and a policy's answers.
    rows = [
        LabelledRow(prompt=each[0], completions=(each[1],), target=1) for each in zip(prompts, answers, strict=True)
    ]
    tokens = [row[0] for row in tokenise(rows, reward.reader).tokens]
    assert tokens == [reward.reader.encode(*each) for each in zip(prompts, answers, strict=True)]
    asked = [Prompt(prompt=prompt, columns={}) for prompt in prompts]
    scores = score_completions(reward, asked, [answer[0]["content"] for answer in answers])
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_conversation_without_a_chat_template_is_refused_by_the_decoder(folders):
    with pytest.raises(InputError, match="chat template"):
        load_reward(folders["decoder"])([[{"role": "user", "content": "a"}]], [[{"role": "assistant", "content": "b"}]])


def test_offset_is_added(folders, tmp_path):
    write_decoder(tmp_path / "scaled", scale=RewardScale(gain=2.0, bias=-0.5, offset=-0.5))
    plain, scaled = load_reward(folders["decoder"]), load_reward(tmp_path / "scaled")
    np.testing.assert_allclose(scaled(PROMPTS, COMPLETIONS), np.array(plain(PROMPTS, COMPLETIONS)) - 0.5, atol=1e-6)


def test_serves_as_a_reward_by_name(folder, reward):
    named = load_by_name(f"model:{folder}")
    prompts = [Prompt(prompt=text, columns={"id": 1}) for text in PROMPTS]
    np.testing.assert_allclose(
        score_completions(named, prompts, COMPLETIONS), reward(PROMPTS, COMPLETIONS), rtol=0, atol=1e-5
    )


def test_folder_without_a_score_head_is_refused(tmp_path):
    write_byte_model(tmp_path / "policy", num_layers=1, model_size=16, num_heads=2, context=16)
    with pytest.raises(InputError, match=r"no score head.*reward-model"):
        load_by_name(f"model:{tmp_path / 'policy'}")


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        load_by_name(f"model:{tmp_path / 'none'}")


def test_lists_of_different_length_are_refused(reward):
    with pytest.raises(InputError, match="1 for 2 prompts"):
        reward(["a", "b"], ["c"])
