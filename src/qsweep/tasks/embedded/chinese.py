"""Small questions in Chinese: opposites, idioms, sums in words, capitals. Written for qsweep."""

import random
from collections.abc import Iterator

from qsweep.tasks.items import Item

_CHOICES = 4
_OPPOSITES = (
    "大小 多少 高低 长短 黑白 上下 左右 前后 里外 冷热 快慢 新旧 远近 早晚 天地 男女 老少 胖瘦 粗细 深浅 "
    "开关 来去 买卖 进出 东西 南北 真假 好坏 对错 强弱 轻重 明暗 软硬 生死 贫富 咸淡 宽窄 厚薄 胜败 有无"
).split()
_IDIOMS = (
    "一心一意 三心二意 四面八方 五颜六色 七上八下 九牛一毛 十全十美 百花齐放 千山万水 万众一心 画蛇添足 "
    "守株待兔 亡羊补牢 狐假虎威 井底之蛙 掩耳盗铃 对牛弹琴 打草惊蛇 虎头蛇尾 马到成功 自相矛盾 半途而废 "
    "不可思议 风和日丽 春暖花开 山清水秀 鸟语花香 胸有成竹 井井有条 津津有味 恍然大悟 精益求精 目不转睛 "
    "雪中送炭 锦上添花 画龙点睛 杯弓蛇影 刻舟求剑 滥竽充数 叶公好龙 买椟还珠 朝三暮四 熟能生巧 闻鸡起舞 "
    "卧薪尝胆 破釜沉舟 纸上谈兵 完璧归赵 负荆请罪 三顾茅庐"
).split()
_CAPITALS = (
    "法国巴黎 日本东京 英国伦敦 德国柏林 俄国莫斯科 意大利罗马 西班牙马德里 埃及开罗 泰国曼谷 越南河内 "
    "韩国首尔 希腊雅典 古巴哈瓦那 加拿大渥太华 秘鲁利马 伊朗德黑兰 荷兰阿姆斯特丹 波兰华沙 瑞典斯德哥尔摩 "
    "挪威奥斯陆"
).split()
_LENGTHS = {"意大利": 3, "西班牙": 3, "加拿大": 3}
_DIGITS = "零一二三四五六七八九"


def chinese_basics(count: int, seed: int) -> list[Item]:
    """At most so many questions, in an order drawn by ``seed``."""
    rng = random.Random(f"chinese {seed}")  # noqa: S311 - not for cryptography
    items = [*_opposites(rng), *_idioms(rng), *_capitals(rng), *_sums(rng)]
    rng.shuffle(items)
    return items[:count]


def _opposites(rng: random.Random) -> Iterator[Item]:
    words = [pair[1] for pair in _OPPOSITES]
    for pair in _OPPOSITES:
        first, second = pair[0], pair[1]
        yield _item(f"“{first}”的反义词是“", second, words, rng)


def _idioms(rng: random.Random) -> Iterator[Item]:
    ends = [idiom[-1] for idiom in _IDIOMS]
    for idiom in _IDIOMS:
        yield _item(f"成语：{idiom[:-1]}", idiom[-1], ends, rng)


def _capitals(rng: random.Random) -> Iterator[Item]:
    pairs = []
    for entry in _CAPITALS:
        cut = next((n for name, n in _LENGTHS.items() if entry.startswith(name)), 2)
        pairs.append((entry[:cut], entry[cut:]))
    cities = [city for _, city in pairs]
    for country, city in pairs:
        yield _item(f"{country}的首都是", city, cities, rng)


def _sums(rng: random.Random) -> Iterator[Item]:
    for first in range(1, 9):
        for second in range(first, 10 - first):
            digits = list(_DIGITS[1:])
            prompt = f"{_DIGITS[first]}加{_DIGITS[second]}等于"
            yield _item(prompt, _DIGITS[first + second], digits, rng)


def _item(prompt: str, answer: str, others: list[str], rng: random.Random) -> Item:
    # In the prompt a word would be no fair distractor.
    fair = sorted({word for word in others if word != answer and word not in prompt})
    choices = [answer, *rng.sample(fair, _CHOICES - 1)]
    rng.shuffle(choices)
    return Item(prompt, answer, tuple(choices))
