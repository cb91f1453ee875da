"""Languages of whole sentences: by hand, and of translations that are known to be in theirs."""

import pytest

from permafrost.data.quality.languages import language_of, languages_by_word, languages_of

SENTENCES = {
    "English": ["The weather was so warm that they went to the sea.", "a book that nobody has ever read"],
    "German": ["Das Wetter war so warm, dass sie ans Meer fuhren.", "Ein Mann sitzt auf einer Bank und liest."],
    "French": ["Il fait trop chaud pour sortir dans la rue.", "Les enfants jouent avec le chien."],
    "Spanish": ["El perro duerme en la casa porque hace frío.", "Los niños juegan con una pelota muy grande."],
    "Italian": ["Il cane dorme nella casa perché fuori è freddo.", "Non so se questo libro è di mio fratello."],
    "Portuguese": ["O cão dorme na casa porque não está calor.", "Ela também foi ao mar com os seus amigos."],
    "Dutch": ["Het weer was zo warm dat ze naar zee gingen.", "De kinderen spelen niet meer met het boek."],
    "Swedish": ["Det var så varmt att de inte ville gå ut.", "Jag har en hund som sover på soffan."],
    "Danish or Norwegian": ["Det er ikke koldt, og jeg har en hund.", "Vi kan ikke se havet fra huset."],
    "Polish": ["To nie jest książka, która mu się podoba.", "Dzieci bawią się na ulicy przez cały dzień."],
    "Czech": ["To je kniha, která se mu nelíbí.", "Děti si hrají na ulici, ale je už tma."],
    "Turkish": ["Bu kitap çok güzel ama uzun değil.", "Her sabah bir bardak süt içer ve okula gider."],
    "Russian": ["Он не был на море, но она была.", "Это было так давно, что все забыли."],
    "Ukrainian": ["Він не був на морі, але вона була.", "Це було так давно, що й досі не вірю."],
}


@pytest.mark.parametrize(
    ("language", "sentence"), [(language, one) for language, of_it in SENTENCES.items() for one in of_it]
)
def test_a_sentence_is_in_its_language(language, sentence):
    assert language_of(sentence) == language


@pytest.mark.parametrize("text", ["", "42 %", "sun snow ice", "x = f(y)", "的", "the"])
def test_what_tells_nothing_is_in_none(text):
    assert language_of(text) is None


def test_shares_are_of_the_texts_that_tell_one():
    assert languages_of(["by the sea", "it is", "der Schnee ist", "?!"]) == {"English": 0.6667, "German": 0.3333}
    assert languages_of([]) == {}


def test_every_language_has_words_of_its_own():
    own = [languages[0] for languages in languages_by_word().values() if len(languages) == 1]
    assert set(own) == SENTENCES.keys()
    assert min(own.count(language) for language in SENTENCES) >= 8
    assert all(len(languages) == len(set(languages)) for languages in languages_by_word().values())


@pytest.mark.parametrize(("suffix", "language"), [("en", "English"), ("de", "German")])
def test_descriptions_of_pictures_are_in_their_language(shared, suffix, language):
    lines = (shared / "data" / "multi30k_en_de" / f"test_2016_flickr.{suffix}").read_text("utf-8").splitlines()
    assert len(lines) == 1000
    told = [found for line in lines if (found := language_of(line))]
    assert len(told) >= 940
    assert told.count(language) >= 0.995 * len(told)
