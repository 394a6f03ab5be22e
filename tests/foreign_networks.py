"""A folder with networks of a user, and with images and boxes for them."""

from data_factory import image_folder, metadata_folder

NET = '''
import timm
from torch import nn

class Net(nn.Module):
    """Its only child is called as Lightning's modules call theirs."""

    def __init__(self, num_classes):
        super().__init__()
        self.model = timm.create_model("test_resnet", num_classes=num_classes)

    def forward(self, x):
        return self.model(x)

    def get_classifier(self):
        return self.model.get_classifier()

    def forward_features(self, x):
        return self.model.forward_features(x)

    def forward_head(self, x):
        return self.model.forward_head(x)

def build(num_classes=5):
    return Net(num_classes)

def fixed():
    return Net(5)

def number():
    return 3

def maps():
    return nn.Conv2d(3, 4, 3)

class Wrapped(nn.Module):
    def __init__(self, net, wrap):
        super().__init__()
        self.net, self.wrap = net, wrap

    def forward(self, x):
        return self.wrap(self.net(x))

def in_dict(num_classes=5):
    return Wrapped(Net(num_classes), lambda y: {"loss": None, "logits": y})

def pair(num_classes=5):
    return nn.DataParallel(Wrapped(Net(num_classes), lambda y: (y, y)).bfloat16())

def segments():
    return Wrapped(nn.Conv2d(3, 4, 3, padding=1), lambda y: {"out": y})

def nothing():
    return Wrapped(nn.Conv2d(3, 4, 3), lambda y: None)

def broken():
    return undefined
'''
IMAGES = [f"{c}/{i}.png" for c in ("a", "b") for i in range(2)]


def write_networks(root):
    """Write net.py, images/, meta/ and split/ with train and test; return the folder."""
    image_folder(root / "images", IMAGES)
    boxes = {i: [(2, 2, 20, 20)] for i in IMAGES}
    metadata_folder(root / "meta", boxes, dict.fromkeys(IMAGES, (32, 24)), dict.fromkeys(IMAGES, 0))
    for split in ("train", "test"):
        (root / "split").mkdir(exist_ok=True)
        (root / "split" / split).symlink_to(root / "images")
    (root / "net.py").write_text(NET)
    return root
