"""What texts look like to models that read them whole."""

from raysift.actors.text_models import TextTokens


def test_tokens_have_the_length_of_their_ids():
    assert len(TextTokens([1, 2, 3], None)) == 3
