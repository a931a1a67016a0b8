#include "core/views.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "diskguard/control.h"

bool views_is_view(const char *type, const char *device)
{
    char path[64];
    struct stat st;
    if (strcmp(type, VIEWS_TYPE) == 0)
        return true;
    if (strncmp(type, "fuse.", strlen("fuse.")) != 0)
        return false;
    snprintf(path, sizeof(path), DG_CONTROL_DIR "/%s.sock", device);
    return lstat(path, &st) == 0 && S_ISSOCK(st.st_mode);
}
