"""The course notebook's LangChain chain, with a specialist as its `llm`. Prompt, parser and chain are the notebook's.

Train a specialist whose answers are the class below (it is named in `task.output`), then ask it:

    cd examples
    afina train ../recipes/noticias.yaml task.output=langchain_chain:ClassificacaoNoticia \
        'data.labels={emocao: {alegria: Felicidade}}' data.path=../src/afina/assets/noticias/noticias.csv \
        output_dir=runs/langchain
    python langchain_chain.py runs/langchain "O PIB cresceu." "A inflação preocupa." "Os dados saem amanhã."
"""

import sys
from typing import Literal

from langchain_core.output_parsers import PydanticOutputParser
from langchain_core.prompts import PromptTemplate
from pydantic import BaseModel, Field

TipoPolaridade = Literal["Positivo", "Negativo", "Neutro"]
TipoEmocao = Literal["Felicidade", "Tristeza", "Raiva", "Nojo", "Medo", "Surpresa", "Desprezo", "Neutro"]


class AnaliseFrase(BaseModel):
    """Define a estrutura para a análise de uma única frase."""

    polaridade: TipoPolaridade = Field(description="A polaridade da frase (Positivo, Negativo ou Neutro)")
    emocao: TipoEmocao = Field(description="A emoção universal de Ekman detectada na frase")


class ClassificacaoNoticia(BaseModel):
    """Define a estrutura completa do JSON de saída para a notícia."""

    f1: AnaliseFrase = Field(description="Análise da primeira frase da notícia")
    f2: AnaliseFrase = Field(description="Análise da segunda frase da notícia")
    f3: AnaliseFrase = Field(description="Análise da terceira frase da notícia")


parser = PydanticOutputParser(pydantic_object=ClassificacaoNoticia)

template = """Classifique a noticia abaixo conforme a polaridade e emoção universal.
Texto:
f1: {f1_text}
f2: {f2_text}
f3: {f3_text}

Resultado:
"""
prompt = PromptTemplate(template=template)


def main() -> None:
    from afina.integrations.langchain import ChatAfina  # not above: the training imports this file for its class

    folder, f1, f2, f3 = sys.argv[1:]
    llm = ChatAfina(run=folder)
    chain = prompt | llm | parser
    resposta = chain.invoke({"f1_text": f1, "f2_text": f2, "f3_text": f3})
    print(resposta)

    # The same answer with what the specialist knows beside it.
    message = (prompt | llm).invoke({"f1_text": f1, "f2_text": f2, "f3_text": f3})
    for field, probability in message.response_metadata["confidence"].items():
        print(f"{field}: {probability:.2f}")


if __name__ == "__main__":
    main()
