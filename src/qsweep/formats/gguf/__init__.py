"""llama.cpp's format: conversion, quantization, and the way back to dense weights."""
