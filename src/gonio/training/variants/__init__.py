"""Variants of LoRA: trained by PEFT and trl, written as plain PEFT LoRA folders."""

__all__: list[str] = []
